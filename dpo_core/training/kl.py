"""How far the policy has moved from its reference, in nats: KL(policy || reference) on held-out prompts.

    KL(x) = E_{y ~ policy(.|x)} [ log policy(y|x) - log reference(y|x) ]

estimated by the mean of the bracket over answers that the policy samples at temperature 1: the estimator k1 of Schulman,
"Approximating KL divergence" (joschu.net/blog/kl-approx.html). It is unbiased; of a very small divergence it may come out
negative. It needs the sums of log-probabilities alone, where k3 needs those of every token under both models at once.
An answer counts up to ``evaluation.max_new_tokens``, its end token included. Two answers are drawn a prompt, and go through
the forward of a preference pair. Shapes: N prompts.
"""

import logging
import math
from collections.abc import Sequence

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from dpo_core.contract.jobs import EvaluateJob, TrainJob
from dpo_core.contract.model_shape import learned_positions
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import CheckpointRef
from dpo_core.data.pair_dataset import HeldOutPrompt, PairDataset
from dpo_core.data.pair_file import common_prefix_length
from dpo_core.data.pairs import TokenizedPair
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.model.forward import PairScorer
from dpo_core.model.generate import sample_answers
from dpo_core.training.answers import AskedPrompts, OnAnswers, in_shares, tokenizer_of
from dpo_core.training.scores import agreed_scoring, generation_of, load_scorer, score_pairs

log = logging.getLogger(__name__)

ANSWERS_PER_PROMPT = 2
SEED = 8


class SampledPairs(list[TokenizedPair]):
    """Pairs in memory that can be scored as those of a file."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of both sides, int64 [N, 2]."""
        return np.array([[len(pair.chosen_ids), len(pair.rejected_ids)] for pair in self])

    @property
    def prefix_lengths(self) -> np.ndarray:
        """Tokens of the longest common prefix, int64 [N]."""
        return np.array([common_prefix_length(pair.chosen_ids, pair.rejected_ids) for pair in self])


def measure_kl(
    job: EvaluateJob, dataset: PairDataset, asked: AskedPrompts, progress: Progress, accelerator: Accelerator
) -> dict[str, float]:
    """Return ``kl/per_token`` with its standard error, and ``kl/per_answer``, of ``job.after`` from its reference, on the
    mixture's own prompts and on each set's. Layouts are tried on ``dataset``.

    The reference is the one that rewards are measured against, or ``job.before`` where the objective has none. One model
    in memory at a time. Empty without prompts.
    """
    prompts = asked.all
    progress.begin("kl", 2 * ANSWERS_PER_PROMPT * len(prompts), "answers")
    if not prompts:
        return {}
    policy_scorer = load_scorer(job.after, job, accelerator)
    scoring = agreed_scoring(policy_scorer, dataset, job, accelerator)
    pairs = sampled_pairs(job, job.after, policy_scorer, prompts, progress.advance, accelerator)
    policy = score_pairs(scoring, pairs, job)
    del policy_scorer, scoring
    reference_scorer = load_scorer(job.reference_checkpoint or job.before, job, accelerator)
    reference = score_pairs(agreed_scoring(reference_scorer, dataset, job, accelerator), pairs, job)
    progress.advance(ANSWERS_PER_PROMPT * len(prompts))
    metrics = asked.metrics(lambda places: kl_metrics(policy[places], reference[places]))
    log.info("kl: %s", "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return metrics


def kl_metrics(policy: PairLogps, reference: PairLogps) -> dict[str, float]:
    """Return k1 over the sampled answers. Prompts are the independent draws that the standard error counts; one has
    none.
    """
    ratio_N = _both(policy.chosen_B, policy.rejected_B) - _both(reference.chosen_B, reference.rejected_B)
    tokens_N = _both(policy.chosen_tokens_B, policy.rejected_tokens_B)
    if not tokens_N.any():  # the model has no place behind any prompt
        return {}
    per_token = float(ratio_N.sum() / tokens_N.sum())
    metrics = {"kl/per_token": per_token, "kl/per_answer": float(ratio_N.mean() / ANSWERS_PER_PROMPT)}
    if (count := len(ratio_N)) > 1:  # of a ratio of means (Cochran, Sampling Techniques, 6.3)
        rest_N = ratio_N - per_token * tokens_N
        error = math.sqrt(float(rest_N.square().sum()) / (count * (count - 1))) / float(tokens_N.mean())
        metrics["kl/per_token_stderr"] = error
    return metrics


def _both(first_N: Tensor, second_N: Tensor) -> Tensor:
    """Sum of a prompt's two answers."""
    return first_N.double() + second_N.double()


def sampled_pairs(
    job: EvaluateJob | TrainJob,
    checkpoint: CheckpointRef,
    scorer: PairScorer,
    prompts: Sequence[HeldOutPrompt],
    on_answers: OnAnswers,
    accelerator: Accelerator,
) -> SampledPairs:
    """Return two sampled answers a prompt as a pair. -> all, on every rank. Raises ``CutOff``."""
    tokenizer = tokenizer_of(job, checkpoint)
    generation = generation_of(job, scorer, accelerator)

    def answer(numbers: Sequence[int]) -> list[list[list[int]]]:
        asked, each = (
            [(number, draw) for number in numbers for draw in range(ANSWERS_PER_PROMPT)],
            ANSWERS_PER_PROMPT,
        )
        drawn = sample_answers(
            scorer.model,
            tokenizer,
            [prompts[number].prompt_ids for number, _ in asked],
            [np.random.default_rng([SEED, number, draw]) for number, draw in asked],
            generation,
            on_answers=on_answers,
        )
        return [drawn[first : first + each] for first in range(0, len(drawn), each)]

    both = in_shares(job, scorer, accelerator, len(prompts), answer)
    most = learned_positions(scorer.model.config.to_dict())
    return SampledPairs(
        _pair(prompt.prompt_ids, *drawn, most=most) for prompt, drawn in zip(prompts, both, strict=True)
    )


def _pair(prompt_ids: np.ndarray, first: list[int], second: list[int], *, most: int | None) -> TokenizedPair:
    """``most``: positions that the model has; the last token of an answer needs none to be drawn, and one to be scored."""

    def side(answer: list[int]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.concatenate([prompt_ids, np.array(answer, dtype=np.int32)]).astype(np.int32)[:most]
        return ids, np.arange(len(ids)) >= len(prompt_ids)

    return TokenizedPair("", *side(first), *side(second))
