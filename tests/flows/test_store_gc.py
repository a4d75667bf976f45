"""The garbage collection of a fresh installation: nothing to do is no failure."""

from pathlib import Path

import pytest

from flows.maintenance import store_gc

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


def test_where_no_run_was_yet_it_completes_and_makes_nothing(tmp_path: Path):
    assert "yet, so nothing is to be removed" in store_gc(tmp_path / "store", dry_run=False)
    assert not (tmp_path / "store").exists()
