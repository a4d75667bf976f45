"""Task: the named sets of ``evaluation.sets`` -> one tokenised mixture, all of it held out."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.config import CheckpointConfig, DataConfig
from dpo_core.contract.data_jobs import MixResult
from dpo_core.contract.evaluation_config import HeldOutSet
from dpo_core.contract.refs import CheckpointRef
from tasks.launch.workplace import Workplace
from tasks.mix_data import PinnedTokenizer, mixed, sets_job
from tasks.run.retry_policy import worth_a_retry
from tasks.show.artifacts import show_sets


# Retried for the reason of mix_data's retries, as often.
@task(
    name="mix sets",
    retries=3,
    retry_delay_seconds=[5, 30, 90],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def mix_sets(
    data: DataConfig,
    sets: tuple[HeldOutSet, ...],
    template: CheckpointConfig,
    checkpoint: CheckpointRef,
    place: Workplace,
) -> MixResult:
    """Run step ``mix`` on the sets. Raises ``DataError``, ``CheckpointError``, ``RemoteError`` as ``mix_data`` does."""
    tokenizer = PinnedTokenizer(checkpoint.path, checkpoint.tokenizer_fingerprint)
    result = mixed(sets_job(data, sets, template, tokenizer, place.store / "cache"), place)
    for one, ledger in zip(sets, result.per_source, strict=True):
        get_run_logger().info("held-out set %s: %d pairs of %d rows", one.name, ledger.kept, ledger.rows_in)
    for warning in result.warnings:
        get_run_logger().warning("%s", warning)
    show_sets(result, [one.name for one in sets], place.context.run.family)
    return result
