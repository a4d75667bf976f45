"""A report of a million rows is no longer to read than one of a thousand: its page holds what was found first, not all."""

from pathlib import Path

from dpo_core.contract.data_jobs import EvaluationOverlap, Finding, MixResult, SourceLedger
from dpo_core.contract.drops import MEANING
from dpo_core.contract.results import RESULT_FILE
from dpo_core.contract.store import write_json
from dpo_core.data.ledger import MAX_OFFENDERS
from tasks.report.page import REPORT_FILE, write_report
from tasks.run.files import read_run_files
from tests.tasks.report.made_run import ledger, make_run

NUM_SOURCES, ROWS_PER_SOURCE = 20, 50_000
LARGEST_PAGE_BYTES = 600_000  # a browser opens that in a fraction of a second
REASONS = ("contaminated", "exact_duplicate", "near_duplicate")


def crowded(number: int) -> SourceLedger:
    """50,000 rows of which every reason takes a thousand, with as much to show as a ledger may hold."""
    findings = tuple(
        Finding(
            reason=reason,
            row=row,
            like=f"org/set-{number}",
            like_row=row,
            similarity=0.9,
            text="<b>Why?</b> " * 13,
            like_text="<b>Why?</b> " * 13,
            is_dropped=True,
        )
        for reason in REASONS
        for row in range(MAX_OFFENDERS)
    )
    return ledger(f"org/set-{number}").model_copy(
        update={
            "available_rows": ROWS_PER_SOURCE,
            "rows_in": ROWS_PER_SOURCE,
            "kept": ROWS_PER_SOURCE - 1000 * len(MEANING),
            "dropped": dict.fromkeys(MEANING, 1000),
            "offenders": {reason: tuple(range(49_000, 49_000 + MAX_OFFENDERS)) for reason in MEANING},
            "findings": findings,
            "longer_chosen": 30_000,
            "longer_rejected": 10_000,
        }
    )


def million_rows(store: Path) -> Path:
    """A run whose mixture has a million rows -> its folder"""
    folder = make_run(store)
    mixture = read_run_files(folder).mixture
    assert isinstance(mixture, MixResult)
    overlap = EvaluationOverlap(label="eval", instances=1319, too_short=3, overlapping=30, rows=400)
    large = mixture.model_copy(
        update={
            "per_source": tuple(map(crowded, range(NUM_SOURCES))),
            "train_rows": 950_000,
            "held_out_rows": 50_000,
            "evaluation_sets": (overlap,),
        }
    )
    (result,) = (path for path in store.rglob(RESULT_FILE) if mixture.job_fingerprint in path.read_text())
    write_json(result, large.model_dump(mode="json"))
    return folder


def test_the_report_of_a_million_rows_is_short(tmp_path):
    folder = million_rows(tmp_path / "store")
    write_report(folder)
    page = (folder / REPORT_FILE).read_text()
    assert "950,000 pairs to train on" in page
    assert f"org/set-{NUM_SOURCES - 1}" in page
    assert len(page.encode()) < LARGEST_PAGE_BYTES
