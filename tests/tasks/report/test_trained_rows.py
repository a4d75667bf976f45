"""The report's rows as they are trained."""

from dpo_core.contract.data_jobs import RowSample, TextSpan
from tasks.report.blocks import Details
from tasks.report.html import _blocks
from tasks.report.markdown import _block
from tasks.report.trained_rows import row_blocks
from tests.tasks.report.made_run import ledger
from tests.tasks.report.test_quality import mixture

SAMPLE = RowSample(
    source="pairs",
    chosen=(TextSpan(kind="prompt", text="<b>hi"), TextSpan(kind="trained", text="yes")),
    rejected=(TextSpan(kind="prompt", text="<b>hi"), TextSpan(kind="untrained", text="no")),
)


def test_a_mixture_of_before_has_none():
    assert row_blocks(mixture(ledger("a"))) == []


def test_prompt_trained_and_untrained_are_told_apart_with_and_without_colours():
    *_, rows = row_blocks(mixture(ledger("a")).model_copy(update={"samples": (SAMPLE,)}))
    assert isinstance(rows, Details)
    page = _blocks((rows,))
    assert '<span class="prompt">&lt;b&gt;hi</span><span class="trained">yes</span>' in page
    assert '<span class="untrained">no</span>' in page
    text = _block(rows)
    assert "hi[[yes]]" in text
    assert "hi((no))" in text
