"""Step ``train``: set-up, the loop (``dpo_core.training.trainer``), the final weights."""

import logging
import time
from collections import deque
from pathlib import Path

import torch
from accelerate import Accelerator

from dpo_core.contract.checkpoint_files import RUN_WEIGHTS
from dpo_core.contract.config import ForwardLayout, TrainConfig
from dpo_core.contract.cuda8bit import check_8bit_fits
from dpo_core.contract.errors import DataError
from dpo_core.contract.float8 import ModelCode
from dpo_core.contract.jobs import TrainJob, TrainResult
from dpo_core.contract.metrics_file import METRICS_FILE, each_step, read_metrics
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.step_memory import holds_frozen_in_half
from dpo_core.contract.store import fingerprint
from dpo_core.data.order import num_steps, steps_per_epoch
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import read_reference
from dpo_core.engine.checkpoint import RunState
from dpo_core.engine.choose import load_for_scoring, loading, start_engine
from dpo_core.engine.distributed import check_world_size, from_main, start_accelerator
from dpo_core.engine.engine import Engine
from dpo_core.engine.heartbeat import watched_ranks
from dpo_core.engine.meeting import meet
from dpo_core.engine.weights_file import save_weights
from dpo_core.model.adapter import adapter_disabled, count_parameters, load_policy
from dpo_core.model.forward import PairScorer
from dpo_core.model.recompute import checkpoint_layers
from dpo_core.model.regions import are_compiled, compile_regions
from dpo_core.model.router import router_loss_of
from dpo_core.training.best import checkpoint_to_resume, take_best
from dpo_core.training.fit_check import check_fit, choose_cut
from dpo_core.training.held_out import evaluations_of
from dpo_core.training.history import forget_after
from dpo_core.training.saving import Saving
from dpo_core.training.scores import Scoring, agreed_layout
from dpo_core.training.start_weights import AsReference, as_reference
from dpo_core.training.step_guard import AFTER_TRAINING, check_step_zero
from dpo_core.training.step_loss import choose_step_loss
from dpo_core.training.stop_request import StopRequest
from dpo_core.training.throughput import timed
from dpo_core.training.tracking import Tracking, accelerator_arguments
from dpo_core.training.trainer import Trainer
from dpo_core.training.while_training import Evaluations, evaluations_while_training

log = logging.getLogger(__name__)


def load_policy_scorer(job: TrainJob, accelerator: Accelerator) -> PairScorer:
    """Return the policy as it starts, with its adapter and its routers' loss if it has them."""
    policy = load_policy(
        job.checkpoint,
        job.adapter,
        job.train.seed,
        loading(job.sharding, accelerator),
        frozen_in_half=holds_frozen_in_half(job.adapter, job.train.precision)
        and not job.sharding.splits_weights,  # else the engine does it, part by part
        code=ModelCode.of(job.train),
    )
    router = router_loss_of(policy, job.train.router_aux_loss_weight)
    scorer = PairScorer(policy, job.train.precision, router)
    scorer.with_squares = job.loss.weighs_by_policy
    return scorer


def _other_reference(job: TrainJob) -> CheckpointRef | None:
    """The reference's checkpoint where it is another model than the policy's start."""
    other = job.reference_checkpoint
    return other if other and other.fingerprint != job.checkpoint.fingerprint else None


def _scorer_of(reference: CheckpointRef, job: TrainJob, accelerator: Accelerator) -> PairScorer:
    """The reference as the run computes it."""
    how = job.train
    return load_for_scoring(reference, how.precision, job.sharding, accelerator, code=ModelCode.of(how))


def _started(job: TrainJob, accelerator: Accelerator) -> tuple[Engine, AsReference | None]:
    """The policy as it starts, and what makes it its reference for a moment where that is needed."""
    scorer = load_policy_scorer(job, accelerator)
    meet(accelerator)  # each has read all of the weights, or one has; or nobody yet
    engine = start_engine(job.sharding, accelerator, scorer, job.optim)
    return engine, as_reference(job, engine, is_start=_other_reference(job) is None)


def _layout_for(
    scorer: PairScorer,
    dataset: PairDataset,
    job: TrainJob,
    accelerator: Accelerator,
    checks: dict[str, float],
) -> ForwardLayout:
    """The layout that all processes agree on; what the choice took goes into ``checks``."""
    with timed(checks, "layout"):
        layout = agreed_layout(scorer, dataset, job.train, accelerator)
    checks["layout_difference"] = scorer.layout_difference
    return layout


def _rows_of(job: TrainJob) -> PairDataset:
    """The rows to train on. Raises ``DataError`` if there are none."""
    dataset = PairDataset.open(job.data.path, "train")
    if not len(dataset):
        raise DataError(f"{job.data.path} has no rows to train on. Lower data.held_out or add data.")
    return dataset


def _make_ready(scorer: PairScorer, train: TrainConfig, compiles: bool) -> None:
    if train.gradient_checkpointing:
        checkpoint_layers(scorer.model, round(train.activation_budget_gib * 2**30))
    if compiles:
        compile_regions(scorer.model)
    scorer.train()


def _go_on(
    job: TrainJob,
    engine: Engine,
    found: tuple[Path, RunState] | None,
    evaluations: Evaluations | None,
    tracking: Tracking,
) -> None:
    """Load the checkpoint that was found, if any; what has to be asked of the policy's start is asked before."""
    step, is_main = found[1].step if found else 0, engine.accelerator.is_main_process
    if is_main:
        forget_after(job, step)
    if evaluations:
        evaluations.go_on_from(step)
    if found:
        engine.load(found[0])
        log.info("resuming from %s", found[0].name)
    if is_main:
        tracking.replay(each_step(job.out_dir / METRICS_FILE), read_metrics(evaluations_of(job)))
    meet(engine.accelerator)  # each has read, one has sent: of unequal length


def _saving(job: TrainJob, engine: Engine, stop: StopRequest, num_rows: int, step: int) -> Saving:
    every = job.train.checkpoint_every
    interval = steps_per_epoch(num_rows, job.batch.global_pairs) if every == "epoch" else every
    return Saving(job, engine, stop, interval, saved_step=step)


def set_up(job: TrainJob, progress: Progress, stop: StopRequest) -> Trainer:
    """Load data, reference and policy; resume from the newest complete checkpoint; run the guard before a first update, and
    the fit check of the largest microbatch."""
    check_8bit_fits(job.adapter, job.optim, job.train.precision, job.sharding.kind)
    accelerator = start_accelerator(job.sharding, **accelerator_arguments(job))
    tracking = Tracking(accelerator, job)
    check_world_size(accelerator, job.batch.num_processes * job.sharding.tensor_degree)
    compiles = job.train.compile_regions and are_compiled(accelerator.device, job.sharding.kind)
    torch.manual_seed(job.train.seed)
    checks: dict[str, float] = {}
    dataset = _rows_of(job)
    with timed(checks, "reference_cache"):
        reference = read_reference(job.reference, "train", dataset.row_keys) if job.reference else None
    found = checkpoint_to_resume(job, accelerator)

    def guard(scorer: PairScorer, layout: ForwardLayout) -> dict[str, float]:
        """Score rows again with the model that the reference values are said to come from."""
        assert reference is not None  # else nothing must be guarded
        with timed(checks, "guard"):
            scoring = Scoring(scorer, layout, accelerator)
            figures = check_step_zero(scoring, dataset, reference, job.loss, job.train.seed)
        checks.update({f"guard_{name}": value for name, value in figures.items()})
        return figures

    figures: dict[str, float] = {}
    must_guard = reference is not None and job.reference_checkpoint is not None and not found
    if must_guard and (other := _other_reference(job)):
        # Before the policy is loaded: one model in memory at a time.
        scorer = _scorer_of(other, job, accelerator)
        figures = guard(scorer, _layout_for(scorer, dataset, job, accelerator, checks))
        del scorer
    engine, in_place = _started(job, accelerator)
    layout = _layout_for(engine.scorer, dataset, job, accelerator, checks)
    if must_guard and not _other_reference(job):
        figures = guard(engine.scorer, layout)
    _make_ready(engine.scorer, job.train, compiles)
    state = found[1] if found else RunState(step=0, job_fingerprint=job.fingerprint, guard=figures)
    total = num_steps(len(dataset), job.batch.global_pairs, job.train.num_epochs, job.train.max_steps)
    size, beside = (len(dataset), total), (stop, tracking, in_place)
    evaluations = evaluations_while_training(job, engine, layout, size, beside)
    _go_on(job, engine, found, evaluations, tracking)
    progress.begin("train", total, "steps", done=state.step)
    trainer = Trainer(
        job=job,
        engine=engine,
        dataset=dataset,
        step_loss=choose_step_loss(job.loss, reference, dataset),
        layout=layout,
        cut=choose_cut(job, engine),
        progress=progress,
        state=state,
        total_steps=total,
        saving=_saving(job, engine, stop, len(dataset), state.step),
        checks=checks,
        tracking=tracking,
        evaluations=evaluations,
        router_weight=engine.scorer.router.weight if engine.scorer.router else 0.0,
    )
    checks |= check_fit(trainer)
    return trainer


def check_base(trainer: Trainer) -> dict[str, float]:
    """Check, after training an adapter, that with it switched off the policy is still its cached reference.

    Returns the guard's figures; none where all weights are trained or the reference is another model. Raises
    ``ReferenceMismatch``.
    """
    job = trainer.job
    if job.adapter.kind == "none" or job.reference is None or _other_reference(job):
        return {}
    reference = read_reference(job.reference, "train", trainer.dataset.row_keys)
    scorer = trainer.engine.scorer
    with adapter_disabled(scorer.model):
        return check_step_zero(
            Scoring(scorer, trainer.layout, trainer.accelerator),
            trainer.dataset,
            reference,
            job.loss,
            job.train.seed,
            moment=AFTER_TRAINING,
        )


def run(job: TrainJob, progress: Progress) -> TrainResult:
    """Train and write the final weights."""
    with watched_ranks(job):
        return _train(job, progress)


def _train(job: TrainJob, progress: Progress) -> TrainResult:
    started, stop = time.monotonic(), StopRequest()
    stop.listen()  # before the set-up, which may take minutes
    trainer = set_up(job, progress, stop)
    stop.set_up_is_over()
    resumed_from = trainer.state.step or None
    try:
        trainer.train()
    finally:
        trainer.tracking.finish()
    meet(trainer.accelerator)  # rank 0 may have sent for long
    base_check, best = check_base(trainer), take_best(trainer)
    checks = (
        trainer.checks
        | trainer.saving.figures
        | {"share_of_run": _verifying_seconds(trainer.checks) / (time.monotonic() - started)}
    )
    log.info("checks of cache, layout and step 0: %.1f %% of this run's time", 100 * checks["share_of_run"])
    trained, total = count_parameters(trainer.engine.scorer.model)
    weights = job.out_dir / "weights"
    hashes = save_weights(weights, trainer.engine)
    meet(trainer.accelerator)
    return TrainResult(
        job_fingerprint=job.fingerprint,
        weights_path=weights,
        weights_fingerprint=_weights_fingerprint(hashes),
        weights_sha256=hashes,
        steps=trainer.state.step,
        pairs=_pairs_seen(trainer),
        resumed_from_step=resumed_from,
        metrics_path=job.out_dir / METRICS_FILE,
        first_metrics=trainer.state.first_metrics,
        # Those of an earlier start, where this one made the last evaluation alone; all ranks ask, or none.
        last_metrics=trainer.last_metrics
        or from_main(trainer.accelerator, lambda: deque(each_step(job.out_dir / METRICS_FILE), 1)[0]),
        guard=trainer.state.guard,
        checks=checks,
        base_check=base_check,
        adapter=job.adapter,
        trained_parameters=trained,
        all_parameters=total,
        forward=trainer.layout,
        best=best,
    )


def _weights_fingerprint(hashes: dict[str, str]) -> str:
    return fingerprint(hashes[RUN_WEIGHTS] if len(hashes) == 1 else sorted(hashes.items()))


def _verifying_seconds(checks: dict[str, float]) -> float:
    """What the checks that nothing would need took: without the fit check, whose memory the first step takes anyway."""
    return sum(checks.get(f"{name}_seconds", 0.0) for name in ("reference_cache", "layout", "guard"))


def _pairs_seen(trainer: Trainer) -> int:
    pairs, rows = trainer.job.batch.global_pairs, len(trainer.dataset)
    full_epochs, rest = divmod(trainer.state.step, steps_per_epoch(rows, pairs))
    return full_epochs * rows + min(rest * pairs, rows)
