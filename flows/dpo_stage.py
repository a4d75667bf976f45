"""The flow: SFT checkpoint and preference data -> a DPO-aligned checkpoint that an RLVR run can start from.

Wiring only. Tasks are called directly, not submitted: a cancelled flow then interrupts the waiting task, whose launcher
stops the step.
"""

from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from dpo_core.config import CheckpointConfig
from dpo_core.cuda8bit import check_cuda8bit
from dpo_core.gpu_attention import check_gpu_attention
from dpo_core.jobs import CheckpointRef
from dpo_core.results import EvaluateResult, TrainResult
from flows.stage_config import StageConfig
from tasks.artifacts import show_checkpoint, show_handoff, show_upload
from tasks.cache_reference import cache_reference
from tasks.evaluate import evaluate
from tasks.fetch_checkpoint import fetch_checkpoint
from tasks.hand_off_rlvr import HandoffInputs, hand_off_rlvr, handoff_path
from tasks.handoff.schema import RLVRHandoff
from tasks.launch.choose import launcher_for
from tasks.launch.compute import check_devices, solve_batch, this_machine
from tasks.launch.launcher import Launcher
from tasks.mix_data import mix_data
from tasks.publish.model_card import CardInputs
from tasks.report.page import StageResults, show_report
from tasks.report.run_folder import recorded_run
from tasks.resolve_sources import check_sources
from tasks.train_dpo import TrainingInputs, train_dpo
from tasks.upload_checkpoint import upload_checkpoint


@flow(name="dpo-stage", persist_result=False)
def dpo_stage(config: StageConfig) -> RLVRHandoff:
    """fetch checkpoint -> mix data -> cache reference -> train -> evaluate -> upload -> hand off."""
    check_before_start(config)
    store = config.store.root.expanduser().resolve()
    launcher = launcher_for(config.compute)
    with recorded_run(store, config.name, config, flow_run.get_id()) as run:
        # The trainer image is built or found here once steps run in containers (tasks/build_image.py).
        with run.step("fetch checkpoint"):
            policy = fetch_checkpoint(config.checkpoint, store, launcher)
            show_checkpoint(policy)
        with run.step("mix data"):
            mixture = mix_data(config.data, config.checkpoint, policy, store, launcher)
            run.result("mix", mixture)
        reference = reference_model = None
        if config.loss.needs_reference:
            with run.step("cache reference"):
                reference_model = fetch_reference_model(config, policy, store, launcher)
                same = reference_model.fingerprint == policy.fingerprint  # then it is the policy without its adapter
                reference = cache_reference(config.reference, config.train, reference_model,
                                            config.adapter.base_weights if same else "full", mixture, store, launcher)
                run.result("reference", reference)
        with run.step("train"):
            inputs = TrainingInputs(policy, mixture, reference, reference_model)
            trained, exported = train_dpo(inputs, config.loss, config.optim, config.train, config.adapter,
                                          config.checkpoint, store, launcher)
            run.result("train", trained)
            run.result("export", exported)
        with run.step("evaluate"):
            evaluation = evaluate(inputs, exported, config.loss, config.train, config.evaluation, store, launcher)
            run.result("evaluate", evaluation)
        with run.step("upload"):
            card = card_inputs(config, inputs, trained, evaluation)
            uploaded = upload_checkpoint(exported, config.upload, store, card)
            show_upload(uploaded)
        with run.step("hand off"):
            handoff_inputs = HandoffInputs(
                name=config.name, uploaded=uploaded, export=exported, parent=policy,
                data_fingerprint=mixture.data.fingerprint, token_block=config.upload.token_block,
                reference_fingerprint=reference.reference.fingerprint if reference else None,
                metrics_before=evaluation.before, metrics_after=evaluation.after)
            handoff = hand_off_rlvr(handoff_inputs, config.handoff, launcher, store)
            path = handoff_path(store, handoff_inputs, config.handoff)
            run.output("handoff", path)
            show_handoff(handoff, path)
        results = StageResults(policy, mixture, reference_model, reference, trained, exported, evaluation, handoff, path)
        show_report(run.folder.name, results, config.evaluation.num_samples_shown, run.folder)
    return handoff


def check_before_start(config: StageConfig) -> None:
    """Refuse what cannot work before anything is fetched or booked. Raises ``ConfigError``, ``DataError``."""
    check_sources(config.data.sources)
    check_devices(config.compute, this_machine())
    check_cuda8bit(config.adapter, config.optim, this_machine().num_gpus)
    check_gpu_attention(config.train.attention, this_machine().num_gpus)
    solve_batch(config.train.global_batch_pairs, config.train.per_device_batch_pairs, config.compute.num_processes)


def fetch_reference_model(config: StageConfig, policy: CheckpointRef, store: Path, launcher: Launcher) -> CheckpointRef:
    """The checkpoint named as the reference, or the policy's own start."""
    if config.reference.source is None:
        return policy
    other = CheckpointConfig(source=config.reference.source, revision=config.reference.revision)
    return fetch_checkpoint(other, store, launcher)


def card_inputs(config: StageConfig, inputs: TrainingInputs, trained: TrainResult, evaluation: EvaluateResult) -> CardInputs:
    """What the model card tells."""
    mixture = inputs.mixture
    return CardInputs(name=config.name, parent=inputs.policy, sources=mixture.per_source, train_rows=mixture.train_rows,
                      held_out_rows=mixture.held_out_rows, data_fingerprint=mixture.data.fingerprint, loss=config.loss,
                      optim=config.optim, train=config.train, adapter=config.adapter,
                      trained_parameters=trained.trained_parameters, all_parameters=trained.all_parameters,
                      steps=trained.steps, metrics_before=evaluation.before, metrics_after=evaluation.after)
