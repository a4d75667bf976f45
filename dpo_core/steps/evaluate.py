"""Step ``evaluate``: the held-out pairs and prompts, before and after training. One model in memory at a time."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import gather_object

from dpo_core.contract.jobs import AnswerPair, EvaluateJob, EvaluateResult
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import CheckpointRef
from dpo_core.data.checkers import judge, passes
from dpo_core.data.pair_dataset import HeldOutPrompt, PairDataset
from dpo_core.data.tokenizer import load_tokenizer
from dpo_core.engine.choose import calling_the_model
from dpo_core.engine.distributed import start_accelerator
from dpo_core.engine.heartbeat import watched_ranks
from dpo_core.model.forward import PairScorer
from dpo_core.model.generate import answer_greedily
from dpo_core.training.held_out import held_out_reference, pair_metrics
from dpo_core.training.kl import measure_kl
from dpo_core.training.scores import agreed_scoring, generation_of, load_scorer, score_pairs
from dpo_core.training.whole_weights import share_for_scoring_within_machines

log = logging.getLogger(__name__)


class HeldOut(NamedTuple):
    """What is held out, the same for every checkpoint."""

    dataset: PairDataset
    prompts: Sequence[HeldOutPrompt]


def _score(
    job: EvaluateJob,
    dataset: PairDataset,
    scorer: PairScorer,
    is_reference: bool,
    progress: Progress,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Metrics over the held-out pairs.

    ``is_reference`` says that the scorer's model is the reference: it is measured against itself, as the cached values were
    computed in other batches and would leave float noise in place of every tie.
    """
    scoring = agreed_scoring(scorer, dataset, job, accelerator)
    policy = score_pairs(scoring, dataset, job, progress.advance)
    cached = held_out_reference(job.reference, dataset, accelerator)
    return pair_metrics(job.loss, dataset, policy, policy if is_reference else cached)


def greedy_answers(
    job: EvaluateJob,
    checkpoint: CheckpointRef,
    scorer: PairScorer,
    prompts: Sequence[HeldOutPrompt],
    progress: Progress,
    accelerator: Accelerator,
) -> list[str]:
    """Return answers to the held-out prompts, each rank taking its share. -> in the prompts' order, on every rank

    Ranks that hold a part of each weight can only compute together: there every rank gives all answers, which are rank 0's.
    """
    world = 1 if scorer.is_split else accelerator.num_processes
    mine = [prompt.prompt_ids for prompt in prompts[accelerator.process_index % world :: world]]
    tokenizer = load_tokenizer(checkpoint.path, None, checkpoint.allow_remote_code)
    with calling_the_model(job.sharding, scorer, accelerator.device):
        answers = answer_greedily(
            scorer.model,
            tokenizer,
            mine,
            generation_of(job, scorer, accelerator),
            on_answers=progress.advance,
        )
    if world == 1:
        return answers
    by_rank = gather_object([answers])
    return [by_rank[number % world][number // world] for number in range(len(prompts))]


def _evaluate(
    job: EvaluateJob,
    checkpoint: CheckpointRef,
    held_out: HeldOut,
    phase: str,
    progress: Progress,
    accelerator: Accelerator,
) -> tuple[dict[str, float], list[str]]:
    """Metrics on the held-out pairs and answers to the prompts, of one checkpoint."""
    dataset, prompts = held_out
    progress.begin(phase, len(dataset) + len(prompts), "pairs and answers")
    if not len(dataset):
        return {}, []
    scorer = load_scorer(checkpoint, job, accelerator)
    scorer.with_squares = job.loss.weighs_by_policy
    is_reference = (
        job.reference_checkpoint is not None
        and checkpoint.fingerprint == job.reference_checkpoint.fingerprint
    )
    metrics = _score(job, dataset, scorer, is_reference, progress, accelerator)
    answers = greedy_answers(job, checkpoint, scorer, prompts, progress, accelerator)
    metrics |= checker_rates(answers, prompts)
    if answers:
        metrics["answers/mean_words"] = sum(len(answer.split()) for answer in answers) / len(answers)
    log.info("%s: %s", phase, "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return metrics, answers


def checker_rates(answers: Sequence[str], prompts: Sequence[HeldOutPrompt]) -> dict[str, float]:
    """Return IFEval's four accuracies over the prompts that have constraints: of prompts and of single instructions, strict
    and loose. Empty without such prompts."""
    verdicts = [
        judge(answer, prompt.constraints)
        for answer, prompt in zip(answers, prompts, strict=True)
        if prompt.constraints
    ]
    if not verdicts:
        return {}
    strict = [kept for verdict in verdicts for kept in verdict.strict]
    loose = [kept for verdict in verdicts for kept in verdict.loose]
    return {
        "checker/pass_rate": sum(verdict.passes for verdict in verdicts) / len(verdicts),
        "checker/pass_rate_loose": sum(all(verdict.loose) for verdict in verdicts) / len(verdicts),
        "checker/instruction_rate": sum(strict) / len(strict),
        "checker/instruction_rate_loose": sum(loose) / len(loose),
        "checker/prompts": float(len(verdicts)),
    }


def _distinct_prompts(dataset: PairDataset, limit: int) -> list[int]:
    """Rows of the first ``limit`` different held-out prompts."""
    rows: dict[bytes, int] = {}
    for row in range(len(dataset)):
        if len(rows) == limit:
            break
        rows.setdefault(dataset.prompt(row).prompt_ids.tobytes(), row)
    return list(rows.values())


def run(job: EvaluateJob, progress: Progress) -> EvaluateResult:
    """Evaluate ``before`` and ``after`` on the same rows."""
    with watched_ranks(job):
        return _evaluate_both(job, progress)


def _evaluate_both(job: EvaluateJob, progress: Progress) -> EvaluateResult:
    accelerator = start_accelerator(job.sharding.for_scoring)
    share_for_scoring_within_machines(job, accelerator)
    dataset = PairDataset.open(job.data.path, "held_out")
    prompts = [dataset.prompt(row) for row in _distinct_prompts(dataset, job.evaluation.num_prompts)]
    held_out = HeldOut(dataset, prompts)
    before, answers_before = _evaluate(job, job.before, held_out, "before", progress, accelerator)
    after, answers_after = _evaluate(job, job.after, held_out, "after", progress, accelerator)
    if job.evaluation.measure_kl:
        after |= measure_kl(job, dataset, prompts, progress, accelerator)

    def verdict(answer: str, prompt: HeldOutPrompt) -> bool | None:
        return passes(answer, prompt.constraints) if prompt.constraints else None

    pairs = tuple(
        AnswerPair(
            prompt=prompt.text,
            before=old,
            after=new,
            before_passes=verdict(old, prompt),
            after_passes=verdict(new, prompt),
        )
        for prompt, old, new in zip(prompts, answers_before, answers_after, strict=True)
    )
    return EvaluateResult(
        job_fingerprint=job.fingerprint,
        before=before,
        after=after,
        num_pairs=len(dataset),
        num_prompts=len(prompts),
        answers=pairs,
    )
