"""Task: mixture and reference model -> sum of log-probabilities and token count of every answer."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.config import BaseWeights, ReferenceConfig, TrainConfig
from dpo_core.contract.data_jobs import MixResult
from dpo_core.contract.jobs import ReferenceJob, ReferenceResult
from dpo_core.contract.refs import CheckpointRef
from tasks.launch.compute import sharding_of
from tasks.launch.workplace import Workplace
from tasks.run.retry_policy import worth_a_retry
from tasks.show.artifacts import show_reference


# Retried because the pass may be long: finished shards are kept, so a retry goes on where it died.
@task(
    name="cache reference",
    retries=3,
    retry_delay_seconds=[5, 30, 90],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def cache_reference(
    reference: ReferenceConfig,
    train: TrainConfig,
    checkpoint: CheckpointRef,
    base_weights: BaseWeights,
    mixture: MixResult,
    place: Workplace,
) -> ReferenceResult:
    """Run step ``reference`` with ``checkpoint`` as the reference model, in the numerics of the training."""
    result = place.run(reference_job(reference, train, checkpoint, base_weights, mixture, place))
    # The rate is of this job's own rows: 0 where the cache had all, and where jobs of an array computed them.
    rate = f", {result.pairs_per_second:.1f} pairs/s" if result.pairs_per_second else ""
    get_run_logger().info("%d rows, %d of them computed now%s", result.rows, result.rows_computed, rate)
    show_reference(result, place.context.run.family)
    return result


def reference_job(
    reference: ReferenceConfig,
    train: TrainConfig,
    checkpoint: CheckpointRef,
    base_weights: BaseWeights,
    mixture: MixResult,
    place: Workplace,
) -> ReferenceJob:
    """Return the job of the reference pass."""
    return ReferenceJob(
        data=mixture.data,
        checkpoint=checkpoint,
        base_weights=base_weights,
        precision=train.precision,
        implementation=train.implementation,
        float8=train.float8,
        forward=train.forward,
        attention=train.attention,
        tokens_per_batch=reference.tokens_per_batch,
        rows_per_shard=reference.rows_per_shard,
        cache_dir=place.store / "reference-rows",
        sharding=sharding_of(place.launcher.compute_for(ReferenceJob.step)),
    )
