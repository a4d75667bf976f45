"""How many requests a forward takes: by memory, and the same scores whatever that gives."""

import logging

import pytest
from lm_eval.models.huggingface import HFLM

from dpo_core.benchmarks import harness_model
from dpo_core.benchmarks.harness_model import BYTES_PER_LOGIT, MOST_ROWS, SHARE_OF_MEMORY, rows_that_fit
from tests.benchmark_jobs import benchmark_job, folder_of, write_tasks
from tests.tiny_models import make_model, make_tokenizer
from tests.tiny_stage import checkpoint_ref, run_here

GIB = 1 << 30
LENGTH = 512


@pytest.mark.parametrize(
    ("length", "vocabulary", "free", "rows"),
    [
        # 2,048 tokens of 131,072 logits of 8 bytes are 2 GiB a row; a quarter of the memory may go to them.
        (2048, 1 << 17, 8 * GIB, 1),
        (2048, 1 << 17, 8 * GIB - 1, 1),  # a row is asked whatever there is
        (2048, 1 << 17, 16 * GIB - 1, 1),
        (2048, 1 << 17, 16 * GIB, 2),
        (2048, 1 << 17, 80 * GIB, 10),
        (2048, 1 << 17, 1 << 60, MOST_ROWS),
        (1 << 17, 1 << 17, 64 * GIB, 1),
        (8192, 49152, 24 * GIB, 2),  # SmolLM2's vocabulary: 3 GiB a row
        (64, 300, 0, 1),
    ],
)
def test_rows_by_hand(length: int, vocabulary: int, free: int, rows: int) -> None:
    assert rows_that_fit(length, vocabulary, free) == rows


def test_of_little_memory_several_batches_are_made_and_the_scores_stay(tmp_path, monkeypatch, caplog) -> None:
    """18 requests, of which two fit at a time, or as many as are ever put together."""
    checkpoint = checkpoint_ref(make_model(tmp_path / "model"))
    folder = folder_of(write_tasks(tmp_path / "tasks", ("one",)))
    sizes, ask = [], HFLM._model_call

    def counted(self, inps, *given, **named):
        sizes.append(len(inps))
        return ask(self, inps, *given, **named)

    monkeypatch.setattr(HFLM, "_model_call", counted)
    caplog.set_level(logging.INFO)

    def scores_with(free: int, name: str):
        monkeypatch.setattr(harness_model, "free_bytes", lambda: free)
        sizes.clear()
        job = benchmark_job(
            tmp_path / name / "run",
            checkpoint,
            tasks=("one",),
            folders=(folder,),
            limit=None,
            batch_size="auto",
            max_length_tokens=LENGTH,
        )
        return run_here(job).scores[0], list(sizes)

    a_row = BYTES_PER_LOGIT * LENGTH * len(make_tokenizer())
    few, small = scores_with(int(2.5 * a_row / SHARE_OF_MEMORY), "few")
    assert max(small) == 2 < len(small)
    assert "lm-eval: 2 requests a forward" in caplog.text
    many, large = scores_with(1000 * a_row, "many")
    assert max(large) == MOST_ROWS
    assert len(large) < len(small)
    assert few.documents == many.documents
    assert [one.name for one in few.metrics] == [one.name for one in many.metrics]
    for ours, theirs in zip(few.metrics, many.metrics, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-12)
