"""The report's words on length bias and on rows that checks of quality found."""

from dpo_core.contract.data_jobs import EvaluationOverlap, Finding, MixResult
from dpo_core.contract.refs import DatasetRef
from tasks.report.blocks import Table, Text
from tasks.report.quality import quality_blocks, share_text
from tests.tasks.report.made_run import HEX, ledger, lengths


def mixture(*ledgers) -> MixResult:
    return MixResult(
        job_fingerprint=HEX,
        data=DatasetRef(path="/d", fingerprint=HEX),
        train_rows=80,
        held_out_rows=8,
        per_source=ledgers,
        lengths=lengths(),
        chat_template_sha256=HEX,
    )


def test_a_mixture_of_before_says_nothing():
    assert quality_blocks(mixture(ledger("a"))) == []
    assert share_text((ledger("a"),)) == "–"


def test_the_share_stands_overall_and_by_source_with_a_warning():
    even = ledger("even").model_copy(update={"longer_chosen": 50, "longer_rejected": 50})
    biased = ledger("biased").model_copy(update={"longer_chosen": 70, "longer_rejected": 30})
    _, said, warning, table = quality_blocks(mixture(even, biased))
    assert "60.0% of 200 pairs" in said.text
    assert warning == Text(warning.text, "warn")
    assert "70 % of 100 pairs (biased)" in warning.text
    assert table.rows == (("even", "50.0% of 100 pairs"), ("biased", "70.0% of 100 pairs"))
    assert len(quality_blocks(mixture(even))) == 2  # no warning, and no table of one source


def test_found_rows_are_shown_beside_what_they_are_like():
    finding = Finding(
        reason="exact_duplicate",
        row=7,
        like="other",
        like_row=3,
        similarity=1.0,
        text="Why?",
        like_text="Why!",
        is_dropped=True,
    )
    found = ledger("a").model_copy(
        update={"dropped": {"exact_duplicate": 41}, "counted": {"near_duplicate": 1}, "findings": (finding,)}
    )
    table = quality_blocks(mixture(found))[-1]
    assert isinstance(table, Table)
    assert table.rows == (("a", "7", "exact duplicate", "other row 3", "1.00", "dropped", "Why?", "Why!"),)
    assert table.caption == "1 of 42 rows."


def test_each_evaluation_set_has_its_share():
    overlap = EvaluationOverlap(label="gsm8k", instances=1000, too_short=3, overlapping=25, rows=31)
    mixed = mixture(ledger("a")).model_copy(update={"evaluation_sets": (overlap,)})
    assert quality_blocks(mixed)[1].rows == (("gsm8k", "1,000", "3", "25", "2.5%", "31"),)
