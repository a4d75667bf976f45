"""Task: try on the SFT checkpoint what export and hand-off could refuse, before anything is trained."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.config import CheckpointConfig, ExportPrecision
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.jobs import RehearseJob
from dpo_core.contract.refs import CheckpointRef
from tasks.checkpoint.chosen_template import chosen_template
from tasks.handoff.config import HandoffConfig
from tasks.handoff.rlvr_rules import check_before_training, failed_rules
from tasks.launch.workplace import Workplace
from tasks.run.retry_policy import worth_a_retry


# Retried because its process may be killed; it takes seconds.
@task(
    name="rehearse export",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def rehearse_export(
    config: CheckpointConfig,
    precision: ExportPrecision,
    handoff: HandoffConfig,
    checkpoint: CheckpointRef,
    place: Workplace,
) -> None:
    """Run step ``rehearse`` and hold what it wrote to the hand-off's rules. Raises ``CheckpointError``."""
    chosen = chosen_template(config)
    result = place.run(
        RehearseJob(
            checkpoint=checkpoint,
            chat_template=chosen.template,
            add_bos=chosen.add_bos,
            precision=precision,
            probe_prompt=handoff.probe_prompt,
        )
    )
    if failed := failed_rules(check_before_training(result.path, result.files, result.loaded)):
        raise CheckpointError(
            f"What is trained from {config.source} could not be handed off to an RLVR run: {failed}. Repair the "
            "checkpoint before it is trained."
        )
    get_run_logger().info("An export of %s and its hand-off were rehearsed", config.source)
