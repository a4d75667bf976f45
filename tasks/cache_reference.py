"""Task: mixture and reference model -> sum of log-probabilities and token count of every answer."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.config import BaseWeights, ReferenceConfig, TrainConfig
from dpo_core.contract.jobs import CheckpointRef, ReferenceJob
from dpo_core.contract.results import MixResult, ReferenceResult
from tasks.launch.compute import sharding_of
from tasks.launch.launcher import Launcher
from tasks.launch.run_job import in_store, run_job
from tasks.run.retry_policy import worth_a_retry
from tasks.show.artifacts import show_reference


# Retried because the pass may be long: finished shards are kept, so a retry goes on where it died.
@task(name="cache reference", retries=3, retry_delay_seconds=[5, 30, 90], retry_condition_fn=worth_a_retry,
      cache_policy=NO_CACHE, persist_result=False)
def cache_reference(reference: ReferenceConfig, train: TrainConfig, checkpoint: CheckpointRef,
                    base_weights: BaseWeights, mixture: MixResult, store_root: Path, launcher: Launcher) -> ReferenceResult:
    """Run step ``reference`` with ``checkpoint`` as the reference model, in the numerics of the training."""
    job = ReferenceJob(out_dir=store_root, data=mixture.data, checkpoint=checkpoint, base_weights=base_weights,
                       precision=train.precision, forward=train.forward, attention=train.attention,
                       tokens_per_batch=reference.tokens_per_batch, rows_per_shard=reference.rows_per_shard,
                       cache_dir=store_root / "reference-rows", sharding=sharding_of(launcher.compute))
    result = run_job(in_store(job, store_root), launcher)
    assert isinstance(result, ReferenceResult)
    get_run_logger().info("%d rows, %d of them computed now, %.1f pairs/s", result.rows, result.rows_computed,
                          result.pairs_per_second)
    show_reference(result)
    return result
