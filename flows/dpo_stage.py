"""The flow: SFT checkpoint and preference data -> a DPO-aligned checkpoint that an RLVR run can start from.

Wiring only. Tasks are called directly, not submitted: a cancelled flow then interrupts the waiting task, whose launcher
stops the step.
"""

from prefect import flow
from prefect.runtime import flow_run

from dpo_core.config import CheckpointConfig
from flows.stage_config import StageConfig
from tasks.cache_reference import cache_reference
from tasks.evaluate import evaluate
from tasks.fetch_checkpoint import fetch_checkpoint
from tasks.launch.choose import launcher_for
from tasks.launch.compute import check_devices, solve_batch, this_machine
from tasks.mix_data import mix_data
from tasks.model_card import CardInputs
from tasks.run_folder import recorded_run
from tasks.train_dpo import TrainingInputs, train_dpo
from tasks.upload_checkpoint import upload_checkpoint
from tasks.uploaded_checkpoint import UploadedCheckpoint


def check_before_start(config: StageConfig) -> None:
    """Refuse what cannot work before anything is fetched or booked. Raises ``ConfigError``."""
    check_devices(config.compute, this_machine())
    solve_batch(config.train.global_batch_pairs, config.train.per_device_batch_pairs, config.compute.num_processes)


@flow(name="dpo-stage", persist_result=False)
def dpo_stage(config: StageConfig) -> UploadedCheckpoint:
    """fetch checkpoint -> mix data -> cache reference -> train -> evaluate -> upload -> hand off."""
    check_before_start(config)
    store = config.store.root.expanduser().resolve()
    launcher = launcher_for(config.compute)
    with recorded_run(store, config.name, config, flow_run.get_id()) as run:
        # The trainer image is built or found here once steps run in containers (tasks/build_image.py).
        with run.step("fetch checkpoint"):
            policy = fetch_checkpoint(config.checkpoint, store, launcher)
        with run.step("mix data"):
            mixture = mix_data(config.data, config.checkpoint, policy, store, launcher)
        reference = reference_model = None
        if config.loss.needs_reference:
            with run.step("cache reference"):
                reference_model = policy
                if config.reference.source:
                    other = CheckpointConfig(source=config.reference.source, revision=config.reference.revision)
                    reference_model = fetch_checkpoint(other, store, launcher)
                reference = cache_reference(config.reference, config.train, reference_model, mixture, store, launcher)
        inputs = TrainingInputs(policy, mixture, reference, reference_model)
        with run.step("train"):
            trained, exported = train_dpo(inputs, config.loss, config.optim, config.train, config.checkpoint, store,
                                          launcher)
        with run.step("evaluate"):
            evaluation = evaluate(inputs, exported, config.loss, config.train, config.evaluation, store, launcher)
        card = CardInputs(
            name=config.name, parent=policy, sources=mixture.per_source, train_rows=mixture.train_rows,
            held_out_rows=mixture.held_out_rows, data_fingerprint=mixture.data.fingerprint, loss=config.loss,
            optim=config.optim, train=config.train, steps=trained.steps, metrics_before=evaluation.before,
            metrics_after=evaluation.after)
        with run.step("upload"):
            uploaded = upload_checkpoint(exported, config.upload, store, card)
    return uploaded
