"""A container's first program tells an engine how the step ended, which `accelerate launch` does not."""

import json
import os
import sys
from pathlib import Path

import pytest

from dpo_core.contract.reported_code import mark_of, reported_code
from dpo_core.in_container import main

DIES = "import sys; sys.exit(1)"
REPORTS = "import json, sys; open(sys.argv[2][:-8] + 'error.json', 'w').write(json.dumps({'kind': 'oom'})); sys.exit(1)"


@pytest.mark.parametrize(("program", "code"), [(DIES, 1), (REPORTS, 16), ("pass", 0)])
def test_the_exit_code_is_that_of_the_reported_error(program: str, code: int, tmp_path: Path):
    assert main([sys.executable, "-c", program, "--job", str(tmp_path / "job.json")]) == code


def test_the_report_of_an_earlier_start_says_nothing_of_this_one(tmp_path: Path):
    (tmp_path / "error.json").write_text(json.dumps({"kind": "config"}))
    assert main([sys.executable, "-c", DIES, "--job", str(tmp_path / "job.json")]) == 1


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "{" * 100_000, '{"kind": ["x"]}', '{"kind": "new"}', "\xff"]
)
def test_what_is_no_report_leaves_the_code(content: str, tmp_path: Path):
    report = tmp_path / "error.json"
    report.write_bytes(content.encode("latin-1"))
    assert reported_code(report, 1, None) == 1


def test_a_trap_in_the_reports_place_is_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "error.json")
    assert mark_of(tmp_path / "error.json") is None
    (tmp_path / "other").symlink_to("/dev/zero")
    assert reported_code(tmp_path / "other", 1, None) == 1
