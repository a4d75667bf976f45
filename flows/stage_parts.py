"""The stage in three parts, which ``dpo_stage`` runs once and ``dpo_sweep`` shares: prepare, train and evaluate, publish.

Wiring only. Tasks are called directly, not submitted: a cancelled flow then interrupts the waiting task, whose launcher
stops the step.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prefect.runtime import flow_run

from dpo_core.contract.benchmark_job import BenchmarkResult
from dpo_core.contract.benchmarks import Benchmarks
from dpo_core.contract.config import BaseWeights, CheckpointConfig
from dpo_core.contract.data_jobs import MixJob
from dpo_core.contract.destination_config import UploadConfig
from dpo_core.contract.job import Result
from dpo_core.contract.jobs import EvaluateResult, ExportResult, TrainResult
from dpo_core.contract.judge_job import JudgeResult
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.refs import CheckpointRef
from flows.audience import Audience
from flows.implementation import check_fetched
from flows.judging import check_answers_to_come, judge_answers
from flows.scores import compare, score, score_start
from flows.settings.stage_config import StageConfig
from tasks.benchmark import warn_of_falls
from tasks.build_image import build_image
from tasks.cache_reference import cache_reference
from tasks.check_upload import check_upload
from tasks.checkpoint.chosen_template import chosen_template
from tasks.evaluate import checkpoint_of, evaluate
from tasks.events.chain import announce_handoff
from tasks.fetch_checkpoint import fetch_checkpoint
from tasks.gate.approval import Release
from tasks.hand_off_rlvr import HandoffInputs, hand_off_rlvr, handoff_path
from tasks.handoff.schema import RLVRHandoff
from tasks.image.image_ref import PYTHON
from tasks.launch.context import Context
from tasks.launch.launcher import Launcher, StepImage, kind_of, launcher_for
from tasks.launch.run_job import step_folder
from tasks.launch.workplace import Workplace
from tasks.mix_data import mix_data
from tasks.mix_sets import mix_sets
from tasks.publish.directory_rights import check_directory
from tasks.publish.model_card import CardInputs
from tasks.rehearse_export import rehearse_export
from tasks.run.folder import RunFolder
from tasks.show.artifacts import show_checkpoint, show_handoff, show_image, show_upload
from tasks.show.cluster_page import ClusterPage
from tasks.show.reported_run import reported_run
from tasks.show.run_log import ThinnedLines
from tasks.train_dpo import TrainingInputs, TrainingSettings, train_dpo
from tasks.upload_checkpoint import upload_checkpoint


@dataclass(frozen=True, slots=True)
class StageRun:
    """A run of the stage: where its steps run, the folder that records it, and who follows it."""

    place: Workplace
    folder: RunFolder
    audience: Audience


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained checkpoint and what was measured of it."""

    trained: TrainResult
    exported: ExportResult
    evaluation: EvaluateResult
    benchmarks: Benchmarks | None = None
    judged: JudgeResult | None = None
    scored: BenchmarkResult | None = None

    @property
    def judgement(self) -> JudgeFigures | None:
        """Return what a judge found of its answers."""
        return self.judged.judgement if self.judged else None

    @property
    def place(self) -> str:
        """Return where the checkpoint is, and of which step it is where that is not the last one."""
        best = self.trained.best
        return f"{self.exported.path}" + (f" ({best.in_words})" if best else "")

    def metrics(self, when: Literal["before", "after"]) -> dict[str, float]:
        """Return what was measured of it, and of the SFT checkpoint before it: held out, and tasks' main metrics."""
        held_out: dict[str, float] = getattr(self.evaluation, when)
        preferred = self.judgement.metrics if self.judgement and when == "after" else {}
        return held_out | preferred | (self.benchmarks.metrics(when) if self.benchmarks else {})

    def results(self) -> dict[str, Result]:
        """Return step -> its result, as a run's folder records them."""
        asked: dict[str, Result | None] = {"judge": self.judged, "benchmark": self.scored}
        more = {step: result for step, result in asked.items() if result is not None}
        return {"train": self.trained, "export": self.exported, "evaluate": self.evaluation, **more}


@contextmanager
def stage_run(config: StageConfig, audience: Audience) -> Iterator[StageRun]:
    """Record one run from here to its end."""
    store = config.store.root.expanduser().resolve()
    with reported_run(store, config.name, config, flow_run.get_id(), audience.on_task) as folder:
        shown = ClusterPage(config.name, audience.on_cluster_job)
        context = folder.context(
            Context(on_progress=audience.on_progress, lines=ThinnedLines(), on_cluster_job=shown)
        )
        yield StageRun(Workplace(store, _launcher(config, store, folder), context), folder, audience)


def _launcher(config: StageConfig, store: Path, folder: RunFolder) -> Launcher:
    """What starts the steps; for one that runs them in an image, that is built or found first."""
    if not kind_of(config.compute).runs_in_image:
        return launcher_for(config.compute, config)
    with folder.task("build image"):
        image, record = build_image(config.image, store)
        folder.output("image", record)
        show_image(image, record, config.name)
    return launcher_for(config.compute, config, StepImage(image.reference, PYTHON))


def try_upload(configs: Iterable[StageConfig], name: str, run: StageRun) -> None:
    """Run check upload for each destination that the settings name for a result ``name``; without one there is no such
    part of the run."""
    for upload, cards in _cards_by_upload(configs, name).items():
        with run.folder.task("check upload"):
            check_upload(upload, cards)


def try_directories(configs: Iterable[StageConfig], name: str, inputs: TrainingInputs) -> None:
    """Raise ``ConfigError`` where a directory holds a checkpoint of other weights or rows, which are known once they are
    prepared."""
    for upload, cards in _cards_by_upload(configs, name, inputs).items():
        if upload.directory is not None:
            check_directory(upload.directory, cards)


def _cards_by_upload(
    configs: Iterable[StageConfig], name: str, inputs: TrainingInputs | None = None
) -> dict[UploadConfig, list[CardInputs]]:
    """What is known of the cards that may be published at each destination that is named."""
    cards: dict[UploadConfig, list[CardInputs]] = {}
    for config in configs:
        if config.upload.repo_id or config.upload.directory:
            cards.setdefault(config.upload, []).append(known_of_card(config, name, inputs))
    return cards


def prepare(config: StageConfig, run: StageRun, with_reference: bool = True) -> TrainingInputs:
    """Run fetch checkpoint -> mix sets -> mix data -> cache reference: what does not depend on how the policy is trained."""
    folder, place = run.folder, run.place
    with folder.task("fetch checkpoint"):
        policy = fetch_checkpoint(config.checkpoint, place)
        check_fetched(config, policy)
        show_checkpoint(policy, place.context.run.family)
        rehearse_export(config.checkpoint, config.train.export_precision, config.handoff, policy, place)
    sets, named = None, config.evaluation.sets
    if named:  # first: the last mixture of a run is the one that it trains on
        with folder.task("mix sets"):
            sets = mix_sets(config.data, named, config.checkpoint, policy, place)
            folder.output("sets", step_folder(place.store, MixJob.step, sets.job_fingerprint))
    with folder.task("mix data"):
        mixture = mix_data(config.data, config.quality, config.checkpoint, policy, place, sets)
        folder.result("mix", mixture)
        check_answers_to_come(config, mixture, sets)
    reference = reference_model = of_sets = None
    if with_reference and config.objective.needs_reference:
        with folder.task("cache reference"):
            reference_model, base_weights = reference_of(config, policy, place)
            settings = config.reference, config.train, reference_model, base_weights
            of_sets = cache_reference(*settings, sets, place) if sets else None
            reference = cache_reference(*settings, mixture, place)
            folder.result("reference", reference)
    return TrainingInputs(policy, mixture, reference, reference_model, sets, of_sets)


def reference_of(
    config: StageConfig, policy: CheckpointRef, place: Workplace
) -> tuple[CheckpointRef, BaseWeights]:
    """Return the checkpoint named as the reference, or the policy's own start, and how its weights are held."""
    if config.reference.source is None:
        model = policy
    else:
        other = CheckpointConfig(
            source=config.reference.source,
            revision=config.reference.revision,
            max_download_gib=config.checkpoint.max_download_gib,
        )
        model = fetch_checkpoint(other, place)
        check_fetched(config, model)
    same = model.fingerprint == policy.fingerprint  # then it is the policy without its adapter
    return model, config.adapter.base_weights if same else "full"


def training_settings(config: StageConfig) -> TrainingSettings:
    """Return what of a recipe says how it is trained."""
    return TrainingSettings(
        config.objective,
        config.optim,
        config.train,
        config.adapter,
        config.tracking,
        config.evaluation,
        chosen_template(config.checkpoint),
    )


def train_and_evaluate(config: StageConfig, inputs: TrainingInputs, run: StageRun) -> Candidate:
    """Run benchmark of the SFT checkpoint -> train -> evaluate -> judge -> benchmark.

    The SFT checkpoint comes first: what is wrong with a task shows before hours of training.
    """
    folder = run.folder
    start = score_start(config, inputs.policy, folder, run.place) if config.benchmarks.tasks else None
    with folder.task("train"):
        trained, exported = train_dpo(inputs, training_settings(config), run.place)
        folder.result("train", trained)
        folder.result("export", exported)
    with folder.task("evaluate"):
        evaluation = evaluate(inputs, exported, config.objective, config.train, config.evaluation, run.place)
        folder.result("evaluate", evaluation)
    judged = judge_answers(config, evaluation, folder, run.place)
    end = score(config, checkpoint_of(exported, inputs.policy), folder, run.place) if start else None
    benchmarks = compare(config, start, end, folder) if start and end else None
    candidate = Candidate(trained, exported, evaluation, benchmarks, judged, end)
    warn_of_falls(config.evaluation.warnings, evaluation, benchmarks, candidate.judgement)
    return candidate


def publish(
    config: StageConfig, inputs: TrainingInputs, candidate: Candidate, released: Release, run: StageRun
) -> tuple[RLVRHandoff, Path]:
    """Run upload -> hand off. -> the hand-off and its file"""
    folder, place = run.folder, run.place
    with folder.task("upload"):
        card = _card_inputs(config, inputs, candidate)
        uploaded = upload_checkpoint(candidate.exported, config.upload, place.store, card)
        show_upload(uploaded, config.name)
    with folder.task("hand off"):
        handoff_inputs = HandoffInputs(
            name=config.name,
            uploaded=uploaded,
            export=candidate.exported,
            parent=inputs.policy,
            data_fingerprint=inputs.mixture.data.fingerprint,
            token_block=config.upload.token_block,
            reference_fingerprint=inputs.reference.reference.fingerprint if inputs.reference else None,
            metrics_before=candidate.metrics("before"),
            metrics_after=candidate.metrics("after"),
            benchmarks=candidate.benchmarks,
            release=released,
            best=candidate.trained.best,
        )
        handoff = hand_off_rlvr(handoff_inputs, config.handoff, place)
        path = handoff_path(place.store, handoff_inputs, config.handoff)
        folder.output("handoff", path)
        show_handoff(handoff, path, config.name)
        announce_handoff(handoff, path)
    return handoff, path


def known_of_card(config: StageConfig, name: str, inputs: TrainingInputs | None = None) -> CardInputs:
    """Return what the model card will tell of a recipe's result, and of what it is trained from."""
    settings = CardInputs(
        name=name, loss=config.objective, optim=config.optim, train=config.train, adapter=config.adapter
    )
    if inputs is None:
        return settings
    mixture = inputs.mixture
    return settings.model_copy(
        update={
            "parent": inputs.policy,
            "sources": mixture.per_source,
            "train_rows": mixture.train_rows,
            "held_out_rows": mixture.held_out_rows,
            "data_fingerprint": mixture.data.fingerprint,
        }
    )


def _card_inputs(config: StageConfig, inputs: TrainingInputs, candidate: Candidate) -> CardInputs:
    """What the model card tells."""
    trained, evaluation = candidate.trained, candidate.evaluation
    return known_of_card(config, config.name, inputs).model_copy(
        update={
            "trained_parameters": trained.trained_parameters,
            "all_parameters": trained.all_parameters,
            "steps": trained.steps,
            "best": trained.best,
            "metrics_before": evaluation.before,
            "metrics_after": evaluation.after,
            "benchmarks": candidate.benchmarks,
            "judgement": candidate.judgement,
        }
    )
