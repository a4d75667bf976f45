"""Held-out figures of each source: in a table of their own, and in no other."""

from pathlib import Path

from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.metric_names import of_source
from tasks.report.blocks import Heading, Table
from tasks.report.sections import evaluation_section
from tasks.run.files import RunFiles, StepFiles
from tests.tasks.report.made_run import AFTER, BEFORE, HEX

A, B = "org/a<b", "b.jsonl#2"


def blocks_of(before: dict[str, float], after: dict[str, float]) -> tuple:
    """The section on the evaluation of a run with further metrics."""
    result = EvaluateResult(
        job_fingerprint=HEX,
        before=BEFORE | before,
        after=AFTER | after,
        num_pairs=8,
        num_prompts=0,
        answers=(),
    )
    step = StepFiles(Path(), None, result, None)
    run = RunFiles(Path(), None, {}, None, {"evaluate": step}, handoff=None, handoff_path=None)
    return evaluation_section(run).blocks


def test_sources_have_a_table_of_their_own():
    before = {
        of_source(A, "rewards/accuracies"): 0.5,
        of_source(A, "rewards/margins"): 0.0,
        of_source(A, "loss"): 0.75,
        of_source(A, "logps_per_token/chosen"): -2.0,
    }
    after = {
        of_source(A, "rewards/accuracies"): 0.75,
        of_source(A, "rewards/margins"): 0.25,
        of_source(A, "loss"): 0.5,
        of_source(A, "logps_per_token/chosen"): -1.5,
        of_source(B, "rewards/accuracies"): 0.4,
        of_source(B, "rewards/margins"): -0.125,
    }
    _, main, heading, table = blocks_of(before, after)
    assert heading == Heading("By source")
    assert [column.title for column in table.columns] == [
        "source",
        "reward accuracy, before",
        "reward accuracy, after",
        "reward margin, before",
        "reward margin, after",
        "loss, before",
        "loss, after",
        "log-prob. per token, chosen, before",
        "log-prob. per token, chosen, after",
    ]
    # Before, the second has no figure: of a source without a held-out pair there is none.
    assert table.rows == (
        (A, "0.5", "0.75", "0", "0.25", "0.75", "0.5", "-2", "-1.5"),
        (B, "", "0.4", "", "-0.125", "", "", "", ""),
    )
    assert table.tones == ("good", "")
    assert [row[0] for row in main.rows if "source" in row[0] or A in row[0] or B in row[0]] == []
    assert len(main.rows) == len(AFTER)


def test_one_source_has_no_table():
    assert [type(block) for block in blocks_of({}, {})].count(Table) == 1
