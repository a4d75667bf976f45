"""Task: policy, mixture and reference -> trained weights, exported as a checkpoint that stock transformers loads."""

from dataclasses import dataclass
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.config import AdapterConfig, OptimConfig, TrainConfig
from dpo_core.contract.data_jobs import MixResult
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import ExportJob, ExportResult, ReferenceResult, TrainJob, TrainResult
from dpo_core.contract.loss_config import Loss
from dpo_core.contract.refs import CheckpointRef, HeldOutSets
from dpo_core.contract.tracking_config import TrackingConfig
from tasks.checkpoint.chosen_template import ChosenTemplate
from tasks.hub.tracker_key import with_tracker_key
from tasks.launch.compute import sharding_of, solve_batch
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.run_job import in_store
from tasks.launch.workplace import Workplace
from tasks.run.retry_policy import worth_a_retry
from tasks.show.artifacts import show_training
from tasks.show.trackers import show_trackers


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """What training starts from. ``reference`` and its checkpoint are None for a loss without one. ``sets``: those of
    ``evaluation.sets``, mixed, and what the reference makes of them."""

    policy: CheckpointRef
    mixture: MixResult
    reference: ReferenceResult | None
    reference_checkpoint: CheckpointRef | None
    sets: MixResult | None = None
    sets_reference: ReferenceResult | None = None

    @property
    def held_out_sets(self) -> HeldOutSets | None:
        """Return the sets as jobs name them, without reference values where the objective uses none."""
        if self.sets is None:
            return None
        values = self.sets_reference if self.reference else None
        return HeldOutSets(data=self.sets.data, reference=values.reference if values else None)


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How it is trained. ``template``: what is saved with the result instead of the checkpoint's own."""

    loss: Loss
    optim: OptimConfig
    train: TrainConfig
    adapter: AdapterConfig
    tracking: TrackingConfig
    evaluation: EvaluationConfig
    template: ChosenTemplate


# Retried because machines are lost in long runs: the trainer resumes from its newest complete checkpoint, so each retry
# gets further. Six: a preempted spot machine or a killed process is ordinary, and a defect ends as a named error first.
@task(
    name="train",
    retries=6,
    retry_delay_seconds=[5, 10, 30, 60, 120, 300],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def train_dpo(
    inputs: TrainingInputs, settings: TrainingSettings, place: Workplace
) -> tuple[TrainResult, ExportResult]:
    """Run the steps ``train`` and ``export``."""
    job = in_store(train_job(inputs, settings, place.launcher.compute), place.store)
    show_trackers(job, place.context.run.family)
    with with_tracker_key(place, settings.tracking) as its_place:
        trained = its_place.run(job)
    exported = place.run(
        export_job(
            (trained.weights_path, trained.weights_fingerprint),
            inputs.policy,
            settings.adapter,
            settings.train,
            settings.template,
        )
    )
    get_run_logger().info("%d steps, %d pairs; exported to %s", trained.steps, trained.pairs, exported.path)
    if trained.best:
        get_run_logger().info("exported are %s", trained.best.in_words)
    show_training(trained, place.context.run.family)
    if settings.tracking.is_online:  # its address is known by now
        show_trackers(job, place.context.run.family)
    return trained, exported


def export_job(
    weights: tuple[Path, str],
    policy: CheckpointRef,
    adapter: AdapterConfig,
    train: TrainConfig,
    template: ChosenTemplate,
) -> ExportJob:
    """Return the export of weights: their folder and fingerprint."""
    path, weights_fingerprint = weights
    return ExportJob(
        weights_path=path,
        checkpoint=policy,
        adapter=adapter,
        weights_fingerprint=weights_fingerprint,
        chat_template=template.template,
        add_bos=template.add_bos,
        precision=train.export_precision,
    )


def train_job(inputs: TrainingInputs, settings: TrainingSettings, compute: ComputeConfig) -> TrainJob:
    """Return the training's job. Raises ``ConfigError`` if the batch cannot be cut for the processes."""
    train = settings.train
    return TrainJob(
        data=inputs.mixture.data,
        checkpoint=inputs.policy,
        reference=inputs.reference.reference if inputs.reference else None,
        reference_checkpoint=inputs.reference_checkpoint,
        loss=settings.loss,
        optim=settings.optim,
        train=train,
        adapter=settings.adapter,
        batch=solve_batch(
            train.global_batch_pairs,
            train.per_device_batch_pairs,
            compute.num_processes,
            compute.tensor_degree,
        ),
        sharding=sharding_of(compute),
        tracking=settings.tracking,
        evaluation=settings.evaluation,
        sets=inputs.held_out_sets,
        chat_template=settings.template.template,
    )
