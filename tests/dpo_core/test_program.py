"""What every rank of a step does before the step."""

import pytest

from dpo_core import __main__ as program
from dpo_core.contract.job import JOB_FILE


@pytest.mark.parametrize("rank", ["0", "1"])
def test_no_rank_computes_what_is_there_already(stage, monkeypatch, rank):
    """Rank 0 leaves at once, and another would wait for it: a job that a cluster starts again though it was over."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(program, "run_step", lambda *_: pytest.fail("the step was run"))
    folder = stage.reference.reference.path.parent
    assert program.main(["reference", "--job", str(folder / JOB_FILE)]) == 0
