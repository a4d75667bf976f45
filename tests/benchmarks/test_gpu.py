"""The card's measurements at tiny size on a CPU: every part runs to its end, and its figures are a page's section."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import results
from benchmarks.gpu.__main__ import PARTS

pytestmark = pytest.mark.integration


def test_every_part_runs_and_is_written_down(tmp_path):
    figures = tmp_path / "figures.json"
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--figures", str(figures)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert "every part ran" in ended.stdout
    found = json.loads(figures.read_text())
    assert list(found["gpu"]["no card"]["figures"]) == list(PARTS)
    page = results.page(found)
    assert "### no card" in page
    assert "bf16: tokens a second" in page
