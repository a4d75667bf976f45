"""Task: the held-out pairs and prompts, before and after training."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.config import TrainConfig
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import EvaluateJob, EvaluateResult, ExportResult
from dpo_core.contract.loss_config import Loss
from dpo_core.contract.refs import CheckpointRef
from tasks.gate.signs import signs_in
from tasks.launch.compute import sharding_of
from tasks.launch.workplace import Workplace
from tasks.run.retry_policy import worth_a_retry
from tasks.show.artifacts import show_evaluation
from tasks.train_dpo import TrainingInputs


def checkpoint_of(export: ExportResult, parent: CheckpointRef) -> CheckpointRef:
    """Return the exported model as a checkpoint like the one it came from."""
    return CheckpointRef(
        path=export.path,
        fingerprint=export.fingerprint,
        source=str(export.path),
        files=export.files,
        tokenizer_fingerprint=export.tokenizer_fingerprint,
        allow_remote_code=parent.allow_remote_code,
    )


# Retried because the step may be killed; it starts anew, as it takes minutes.
@task(
    name="evaluate",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def evaluate(
    inputs: TrainingInputs,
    export: ExportResult,
    loss: Loss,
    train: TrainConfig,
    evaluation: EvaluationConfig,
    place: Workplace,
) -> EvaluateResult:
    """Run step ``evaluate`` on the SFT checkpoint and on what will be uploaded."""
    result = place.run(evaluate_job(inputs, export, loss, train, evaluation, place))
    for sign in signs_in(evaluation.warnings, result):
        get_run_logger().warning(sign.words)
    show_evaluation(result, evaluation.num_samples_shown, place.context.run.family)
    return result


def evaluate_job(
    inputs: TrainingInputs,
    export: ExportResult,
    loss: Loss,
    train: TrainConfig,
    evaluation: EvaluationConfig,
    place: Workplace,
) -> EvaluateJob:
    """Return the job of the evaluation."""
    return EvaluateJob(
        data=inputs.mixture.data,
        reference=inputs.reference.reference if inputs.reference else None,
        reference_checkpoint=inputs.reference_checkpoint,
        sets=inputs.held_out_sets,
        before=inputs.policy,
        after=checkpoint_of(export, inputs.policy),
        loss=loss,
        evaluation=evaluation,
        precision=train.precision,
        implementation=train.implementation,
        float8=train.float8,
        forward=train.forward,
        attention=train.attention,
        sharding=sharding_of(place.launcher.compute),
    )
