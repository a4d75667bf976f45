"""Task: preference sets -> one tokenised, shuffled, split mixture with a ledger."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.config import CheckpointConfig, DataConfig
from dpo_core.jobs import CheckpointRef, MixJob
from dpo_core.results import MixResult
from tasks.artifacts import show_mixture
from tasks.launch.launcher import Launcher
from tasks.launch.run_job import in_store, run_job
from tasks.resolve_sources import resolve_sources
from tasks.retry_policy import worth_a_retry


# Retried because a download may break off; sources that arrived and rows that were tokenised are kept.
@task(name="mix data", retries=3, retry_delay_seconds=[5, 30, 90], retry_condition_fn=worth_a_retry,
      cache_policy=NO_CACHE, persist_result=False)
def mix_data(data: DataConfig, template: CheckpointConfig, checkpoint: CheckpointRef, store_root: Path,
             launcher: Launcher) -> MixResult:
    """Run step ``mix``. Raises ``DataError`` for data that cannot be used, ``CheckpointError`` for the template."""
    job = MixJob(out_dir=store_root, sources=resolve_sources(data.sources), tokenizer_path=checkpoint.path,
                 tokenizer_fingerprint=checkpoint.tokenizer_fingerprint, chat_template=template.chat_template,
                 cache_dir=store_root / "cache",
                 **data.model_dump(include={"held_out", "max_length_tokens", "when_too_long", "train_on",
                                            "max_dropped_fraction", "seed", "num_workers"}))
    result = run_job(in_store(job, store_root), launcher)
    assert isinstance(result, MixResult)
    get_run_logger().info("%d pairs to train on, %d held out, %d tokens", result.train_rows, result.held_out_rows,
                          result.lengths.total)
    show_mixture(result)
    return result
