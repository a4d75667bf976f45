"""Step ``evaluate``: the held-out pairs and prompts, before and after training. One model in memory at a time."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from dpo_core.contract.jobs import AnswerPair, EvaluateJob, EvaluateResult
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import CheckpointRef
from dpo_core.data.checkers import passes
from dpo_core.data.pair_dataset import HeldOutPrompt, PairDataset
from dpo_core.data.reference_cache import ReferenceRows, read_reference
from dpo_core.data.tokenizer import load_tokenizer
from dpo_core.engine.choose import gather_ends
from dpo_core.engine.distributed import start_accelerator
from dpo_core.engine.heartbeat import watched_ranks
from dpo_core.loss.losses import StepFacts
from dpo_core.loss.metrics import averages, batch_sums, source_averages, source_sums
from dpo_core.loss.objective import build_objective
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.model.forward import PairScorer
from dpo_core.model.generate import answer_greedily
from dpo_core.training.kl import measure_kl
from dpo_core.training.scores import agreed_layout, generation_of, load_scorer, score_pairs
from dpo_core.training.step_guard import reference_logps
from dpo_core.training.step_loss import PairNumbers, check_numbers

log = logging.getLogger(__name__)


def pair_metrics(
    job: EvaluateJob,
    dataset: PairDataset,
    reference: ReferenceRows | None,
    scorer: PairScorer,
    is_reference: bool,
    progress: Progress,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Return loss, rewards, accuracies and mean log-probabilities over the held-out pairs, which the loss sees as one
    batch.

    A tie of rewards counts as half a win, so a policy that equals its reference scores 0.5. ``is_reference`` says that
    the scorer's model is the reference: it is measured against itself, as the cached values were computed in other
    batches and would leave float noise in place of every tie.
    """
    layout = agreed_layout(scorer, dataset, job, accelerator)
    policy = score_pairs(scorer, dataset, layout, job, accelerator, progress.advance)
    cached = (
        None if reference is None else reference_logps(reference, np.arange(len(dataset)), accelerator.device)
    )
    numbers = PairNumbers.of(dataset)
    check_numbers(job.loss, numbers)
    rows = np.arange(len(dataset))
    shares = numbers.shares(range(len(dataset)))
    share_B = None if shares is None else torch.from_numpy(shares).to(accelerator.device)
    objective = build_objective(job.loss, StepFacts(chosen_tokens=_chosen_tokens(policy, share_B)))
    output = objective(
        policy, policy if is_reference else cached, numbers.margins_of(rows, accelerator.device)
    )
    if share_B is not None:
        output = replace(output, losses_B=share_B * output.losses_B)
    one_B, names = torch.ones_like(policy.chosen_B), dataset.source_names
    metrics = averages(batch_sums(policy, output, one_B, ties_count_half=True))
    if len(names) < 2:
        return metrics
    source_B = torch.from_numpy(dataset.sources).to(accelerator.device)
    sums = source_sums(output, one_B, source_B, len(names), ties_count_half=True)
    return metrics | source_averages(sums, names)


def _chosen_tokens(policy: PairLogps, share_B: torch.Tensor | None) -> float:
    """Tokens of a chosen answer, mean over the pairs, each counting its share."""
    counts_B = policy.chosen_tokens_B.double()
    return float((counts_B if share_B is None else share_B * counts_B).mean())


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
    world = 1 if job.sharding.splits_weights else accelerator.num_processes
    mine = [prompt.prompt_ids for prompt in prompts[accelerator.process_index % world :: world]]
    tokenizer = load_tokenizer(checkpoint.path, None, checkpoint.allow_remote_code)
    gather_ends(job.sharding, scorer)
    answers = answer_greedily(
        scorer.model, tokenizer, mine, generation_of(job, accelerator), on_answers=progress.advance
    )
    if world == 1:
        return answers
    by_rank = gather_object([answers])
    return [by_rank[number % world][number // world] for number in range(len(prompts))]


def _evaluate(
    job: EvaluateJob,
    checkpoint: CheckpointRef,
    dataset: PairDataset,
    prompts: Sequence[HeldOutPrompt],
    phase: str,
    progress: Progress,
    accelerator: Accelerator,
) -> tuple[dict[str, float], list[str]]:
    """Metrics on the held-out pairs and answers to the prompts, of one checkpoint."""
    progress.begin(phase, len(dataset) + len(prompts), "pairs and answers")
    if not len(dataset):
        return {}, []
    reference = read_reference(job.reference, "held_out", dataset.row_keys) if job.reference else None
    scorer = load_scorer(checkpoint, job.precision, job.sharding, accelerator)
    is_reference = (
        job.reference_checkpoint is not None
        and checkpoint.fingerprint == job.reference_checkpoint.fingerprint
    )
    metrics = pair_metrics(job, dataset, reference, scorer, is_reference, progress, accelerator)
    answers = greedy_answers(job, checkpoint, scorer, prompts, progress, accelerator)
    judged = [
        passes(answer, prompt.constraints)
        for answer, prompt in zip(answers, prompts, strict=True)
        if prompt.constraints
    ]
    if judged:
        metrics |= {"checker/pass_rate": sum(judged) / len(judged), "checker/prompts": float(len(judged))}
    if answers:
        metrics["answers/mean_words"] = sum(len(answer.split()) for answer in answers) / len(answers)
    log.info("%s: %s", phase, "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return metrics, answers


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
    dataset = PairDataset.open(job.data.path, "held_out")
    prompts = [dataset.prompt(row) for row in _distinct_prompts(dataset, job.evaluation.num_prompts)]
    before, answers_before = _evaluate(job, job.before, dataset, prompts, "before", progress, accelerator)
    after, answers_after = _evaluate(job, job.after, dataset, prompts, "after", progress, accelerator)
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
