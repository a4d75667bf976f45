"""Step ``evaluate``: the held-out pairs and prompts, before and after training. One model in memory at a time."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from accelerate import Accelerator

from dpo_core.contract.jobs import AnswerPair, EvaluateJob, EvaluateResult
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import CheckpointRef
from dpo_core.data.checkers import passes
from dpo_core.data.pair_dataset import HeldOutPrompt
from dpo_core.engine.distributed import start_accelerator
from dpo_core.engine.heartbeat import watched_ranks
from dpo_core.training.answers import OWN, AskedPrompts, answer_metrics, asked_prompts, greedy_answers
from dpo_core.training.held_out import MeasuredPairs, measured_pairs
from dpo_core.training.kl import measure_kl
from dpo_core.training.scores import Scoring, agreed_scoring, load_scorer, score_pairs
from dpo_core.training.whole_weights import share_for_scoring_within_machines

log = logging.getLogger(__name__)


class HeldOut(NamedTuple):
    """What is held out, the same for every checkpoint."""

    parts: tuple[MeasuredPairs, ...]
    prompts: AskedPrompts


def _score(
    job: EvaluateJob, parts: Sequence[MeasuredPairs], scoring: Scoring, is_reference: bool, progress: Progress
) -> dict[str, float]:
    """Metrics over the held-out pairs.

    ``is_reference`` says that the scorer's model is the reference: it is measured against itself, as the cached values were
    computed in other batches and would leave float noise in place of every tie.
    """
    metrics: dict[str, float] = {}
    for part in parts:
        policy = score_pairs(scoring, part.dataset, job, progress.advance)
        metrics |= part.metrics(job.loss, policy, policy if is_reference else part.reference)
    return metrics


def _evaluate(
    job: EvaluateJob,
    checkpoint: CheckpointRef,
    held_out: HeldOut,
    phase: str,
    progress: Progress,
    accelerator: Accelerator,
) -> tuple[dict[str, float], list[str]]:
    """Metrics on the held-out pairs and answers to the prompts, of one checkpoint."""
    parts, prompts = held_out
    progress.begin(phase, sum(len(part.dataset) for part in parts) + len(prompts), "pairs and answers")
    if not parts:
        return {}, []
    scorer = load_scorer(checkpoint, job, accelerator)
    scorer.with_squares = job.loss.weighs_by_policy
    is_reference = (
        job.reference_checkpoint is not None
        and checkpoint.fingerprint == job.reference_checkpoint.fingerprint
    )
    scoring = agreed_scoring(scorer, parts[0].dataset, job, accelerator)
    metrics = _score(job, parts, scoring, is_reference, progress)
    answers = greedy_answers(job, checkpoint, scorer, prompts.all, progress.advance, accelerator)
    metrics |= answer_metrics(prompts, answers)
    log.info("%s: %s", phase, "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return metrics, [answer.text for answer in answers]


def run(job: EvaluateJob, progress: Progress) -> EvaluateResult:
    """Evaluate ``before`` and ``after`` on the same rows."""
    with watched_ranks(job):
        return _evaluate_both(job, progress)


def _evaluate_both(job: EvaluateJob, progress: Progress) -> EvaluateResult:
    accelerator = start_accelerator(job.sharding.for_scoring)
    share_for_scoring_within_machines(job, accelerator)
    parts = measured_pairs(job, accelerator)
    prompts = asked_prompts(parts, job.evaluation.num_prompts)
    held_out = HeldOut(parts, prompts)
    before, answers_before = _evaluate(job, job.before, held_out, "before", progress, accelerator)
    after, answers_after = _evaluate(job, job.after, held_out, "after", progress, accelerator)
    if job.evaluation.measure_kl and parts:
        after |= measure_kl(job, parts[0].dataset, prompts, progress, accelerator)
    pairs = _side_by_side(prompts.all, answers_before, answers_after)
    by_set = {name: pairs[places] for name, places in prompts.parts()}
    return EvaluateResult(
        job_fingerprint=job.fingerprint,
        before=before,
        after=after,
        num_pairs=sum(len(part.dataset) for part in parts if not part.are_sets),
        num_prompts=len(prompts.by_set.get(OWN, ())),
        answers=by_set.pop(OWN, ()),
        set_answers=by_set,
    )


def _side_by_side(
    prompts: Sequence[HeldOutPrompt], before: Sequence[str], after: Sequence[str]
) -> tuple[AnswerPair, ...]:
    def verdict(answer: str, prompt: HeldOutPrompt) -> bool | None:
        return passes(answer, prompt.constraints) if prompt.constraints else None

    return tuple(
        AnswerPair(
            prompt=prompt.text,
            before=old,
            after=new,
            before_passes=verdict(old, prompt),
            after_passes=verdict(new, prompt),
        )
        for prompt, old, new in zip(prompts, before, after, strict=True)
    )
