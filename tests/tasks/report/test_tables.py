"""Rows and Markdown of the artifacts."""

import pytest

from dpo_core.contract.data_jobs import LengthStats, MixResult, SourceLedger
from dpo_core.contract.jobs import AnswerPair, EvaluateResult
from dpo_core.contract.refs import DatasetRef
from tasks.report.tables import change, markdown_table, metrics_rows, mixture_rows, samples_markdown


def evaluation(**more) -> EvaluateResult:
    return EvaluateResult(
        **{
            "job_fingerprint": "f",
            "before": {"loss": 0.7, "old": 1.0},
            "after": {"loss": 0.5, "new": 2.0},
            "num_pairs": 3,
            "num_prompts": 1,
            "answers": (),
            **more,
        }
    )


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (0.1 + 0.2, 0.3, "+0"),
        (0.0, 2e-17, "+2e-17"),
        (1e-8, 2e-8, "+1e-08"),
        (0.5, 0.25, "-0.25"),
        (None, 1.0, ""),
    ],
)
def test_a_change_is_no_rounding(before: float | None, after: float, shown: str):
    assert change(before, after) == shown


def test_metrics_stand_side_by_side_with_their_change():
    rows = metrics_rows(evaluation())
    assert rows[0] == {"metric": "loss", "before": "0.7", "after": "0.5", "change": "-0.2"}
    assert {row["metric"]: row["change"] for row in rows[1:]} == {"old": "", "new": ""}
    assert [row["metric"] for row in metrics_rows(evaluation(), ["absent", "loss"])] == ["loss"]


def test_no_row_of_the_mixture_is_missing_from_its_table():
    ledger = SourceLedger(
        label="a|b",
        content="c" * 64,
        format={"messages": 9, "text": 1},
        available_rows=20,
        rows_in=10,
        kept=7,
        truncated=2,
        dropped={"identical pair": 2, "empty answer": 1, "none": 0},
        offenders={"identical pair": (3, 5)},
    )
    result = MixResult(
        job_fingerprint="f",
        data=DatasetRef(path="/d", fingerprint="d" * 64),
        train_rows=6,
        held_out_rows=1,
        per_source=(ledger, ledger),
        chat_template_sha256="t",
        lengths=LengthStats(mean_prompt=1, mean_chosen=1, mean_rejected=1, max_sequence=3, total=9),
    )
    first, _, total = mixture_rows(result)
    assert first["dropped because"] == "identical pair 2, empty answer 1"
    assert first["first dropped rows"] == "identical pair: 3, 5"
    assert total["in"] == total["kept"] + total["dropped"] == 20


def test_an_answer_cannot_break_out_of_its_table():
    answer = AnswerPair(
        prompt="a | b\nc", before="<script>", after="x" * 5000, before_passes=False, after_passes=True
    )
    table = samples_markdown(evaluation(answers=(answer,)), 8)
    assert table.splitlines()[2].startswith("| a \\| b<br>c | ✗ &lt;script&gt; | ✓ xxx")
    assert len(table.splitlines()) == 3
    assert len(table) < 1500
    assert "No held-out prompt" in samples_markdown(evaluation(), 8)


def test_an_empty_table_is_empty():
    assert markdown_table([]) == ""
