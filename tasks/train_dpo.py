"""Task: policy, mixture and reference -> trained weights, exported as a checkpoint that stock transformers loads."""

from dataclasses import dataclass
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.config import AdapterConfig, CheckpointConfig, LossConfig, OptimConfig, TrainConfig
from dpo_core.contract.jobs import CheckpointRef, ExportJob, TrainJob
from dpo_core.contract.results import ExportResult, MixResult, ReferenceResult, TrainResult
from dpo_core.contract.tracking_config import TrackingConfig
from tasks.hub.tracker_key import tracker_key
from tasks.launch.compute import sharding_of, solve_batch
from tasks.launch.launcher import Launcher
from tasks.launch.run_job import in_store, run_job
from tasks.run.retry_policy import worth_a_retry
from tasks.show.artifacts import show_training


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """What training starts from. ``reference`` and its checkpoint are None for a loss without one."""

    policy: CheckpointRef
    mixture: MixResult
    reference: ReferenceResult | None
    reference_checkpoint: CheckpointRef | None


# Retried because machines are lost in long runs: the trainer resumes from its newest complete checkpoint, so each retry
# gets further. Six: a preempted spot machine or a killed process is ordinary, and a defect ends as a named error first.
@task(name="train", retries=6, retry_delay_seconds=[5, 10, 30, 60, 120, 300], retry_condition_fn=worth_a_retry,
      cache_policy=NO_CACHE, persist_result=False)
def train_dpo(inputs: TrainingInputs, loss: LossConfig, optim: OptimConfig, train: TrainConfig,
              adapter: AdapterConfig, template: CheckpointConfig, tracking: TrackingConfig, store_root: Path,
              launcher: Launcher) -> tuple[TrainResult, ExportResult]:
    """Run the steps ``train`` and ``export``."""
    reference = inputs.reference.reference if inputs.reference else None
    batch = solve_batch(train.global_batch_pairs, train.per_device_batch_pairs, launcher.compute.num_processes)
    job = TrainJob(out_dir=store_root, data=inputs.mixture.data, checkpoint=inputs.policy, reference=reference,
                   reference_checkpoint=inputs.reference_checkpoint, loss=loss, optim=optim, train=train,
                   adapter=adapter, batch=batch, sharding=sharding_of(launcher.compute), tracking=tracking)
    with tracker_key(tracking):
        trained = run_job(in_store(job, store_root), launcher)
    assert isinstance(trained, TrainResult)
    export_job = ExportJob(out_dir=store_root, weights_path=trained.weights_path, checkpoint=inputs.policy,
                           adapter=adapter, weights_fingerprint=trained.weights_fingerprint,
                           chat_template=template.chat_template, precision=train.export_precision)
    exported = run_job(in_store(export_job, store_root), launcher)
    assert isinstance(exported, ExportResult)
    get_run_logger().info("%d steps, %d pairs; exported to %s", trained.steps, trained.pairs, exported.path)
    show_training(trained)
    return trained, exported
