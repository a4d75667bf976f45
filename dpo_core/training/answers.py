"""Greedy answers to held-out prompts, and what is counted in them: of the mixture's own, and of each named set's.

Every rank answers its share of the prompts. Shapes: N prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from dpo_core.contract.jobs import EvaluateJob, TrainJob
from dpo_core.contract.metric_names import UNENDED, of_set
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.word_count import words_of
from dpo_core.data.checkers import judge
from dpo_core.data.pair_dataset import HeldOutPrompt, PairDataset
from dpo_core.data.tokenizer import load_tokenizer
from dpo_core.engine.choose import calling_the_model
from dpo_core.engine.distributed import by_every_rank, data_rank, tensor_degree
from dpo_core.model import generate
from dpo_core.model.forward import PairScorer
from dpo_core.model.generate import GreedyAnswer
from dpo_core.training.held_out import MeasuredPairs
from dpo_core.training.scores import generation_of

T = TypeVar("T")
OnAnswers = Callable[[int], None]  # told of each batch with its number of prompts
OWN = ""  # stands for the mixture's held-out prompts, where sets are named


class CutOff(Exception):
    """The run was asked to stop while answers were computed. Raised by an ``OnAnswers``; reaches every rank."""


@dataclass(frozen=True, slots=True)
class AskedPrompts:
    """Prompts by the set that they are of; those of the mixture itself are ``OWN``."""

    by_set: dict[str, tuple[HeldOutPrompt, ...]]

    @property
    def all(self) -> list[HeldOutPrompt]:
        """All prompts, set by set."""
        return list(chain.from_iterable(self.by_set.values()))

    def __len__(self) -> int:
        return sum(map(len, self.by_set.values()))

    def parts(self) -> Iterator[tuple[str, slice]]:
        """Yield each set that has prompts, and the places of these among all."""
        first = 0
        for name, prompts in self.by_set.items():
            if prompts:
                yield name, slice(first, first + len(prompts))
            first += len(prompts)

    def metrics(self, of: Callable[[slice], dict[str, float]]) -> dict[str, float]:
        """Return what ``of`` finds at the places of each set, under the set's name."""
        return {
            of_set(name, metric): value
            for name, places in self.parts()
            for metric, value in of(places).items()
        }


def asked_prompts(parts: Sequence[MeasuredPairs], limit: int) -> AskedPrompts:
    """Return the first ``limit`` different prompts of the mixture's held-out pairs and of each set."""
    by_set: dict[str, tuple[HeldOutPrompt, ...]] = {}
    for part in parts:
        of = part.dataset.sources if part.are_sets else np.zeros(len(part.dataset), np.int32)
        for number, name in enumerate(part.dataset.source_names if part.are_sets else (OWN,)):
            rows = np.flatnonzero(of == number)
            by_set[name] = tuple(map(part.dataset.prompt, distinct_prompts(part.dataset, limit, rows)))
    return AskedPrompts(by_set)


def distinct_prompts(dataset: PairDataset, limit: int, among: Sequence[int] | np.ndarray) -> list[int]:
    """Return rows of the first ``limit`` different prompts of some held-out rows."""
    rows: dict[bytes, int] = {}
    for row in among:
        if len(rows) == limit:
            break
        rows.setdefault(dataset.prompt(row).prompt_ids.tobytes(), int(row))
    return list(rows.values())


def greedy_answers(
    job: EvaluateJob | TrainJob,
    checkpoint: CheckpointRef,
    scorer: PairScorer,
    prompts: Sequence[HeldOutPrompt],
    on_answers: OnAnswers,
    accelerator: Accelerator,
) -> list[GreedyAnswer]:
    """Return answers to prompts. -> in the prompts' order, on every rank. Raises ``CutOff``."""
    tokenizer = tokenizer_of(job, checkpoint)
    generation = generation_of(job, scorer, accelerator)

    def answer(numbers: Sequence[int]) -> list[GreedyAnswer]:
        mine = [prompts[number].prompt_ids for number in numbers]
        return generate.greedy_answers(scorer.model, tokenizer, mine, generation, on_answers=on_answers)

    return in_shares(job, scorer, accelerator, len(prompts), answer)


def in_shares(
    job: EvaluateJob | TrainJob,
    scorer: PairScorer,
    accelerator: Accelerator,
    num_prompts: int,
    answer: Callable[[Sequence[int]], list[T]],
) -> list[T]:
    """Return what ``answer`` makes of each of so many prompts; it is given the numbers of this rank's share. -> in the
    prompts' order, on every rank. Raises ``CutOff`` on all ranks where it was raised on one.

    Ranks that hold a part of each weight can only compute together: there every rank answers all, with rank 0's tokens.
    """
    share, shares = (0, 1) if scorer.is_split else data_rank(accelerator)
    try:
        with calling_the_model(job.sharding, scorer, accelerator.device):
            mine = [answer(range(share, num_prompts, shares))]
    except CutOff:
        mine = []
    by_share = [mine]
    if shares > 1:
        by_share = by_every_rank(accelerator, lambda *_: mine)[:: tensor_degree(accelerator)]
    if not all(by_share):
        raise CutOff
    answers = [of_share for (of_share,) in by_share]
    return [answers[number % shares][number // shares] for number in range(num_prompts)]


def tokenizer_of(job: EvaluateJob | TrainJob, checkpoint: CheckpointRef) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a job's answers; in training the checkpoint does not have the chosen chat template yet."""
    template = job.chat_template if isinstance(job, TrainJob) else None
    return load_tokenizer(checkpoint.path, template, checkpoint.allow_remote_code)


def answer_metrics(asked: AskedPrompts, answers: Sequence[GreedyAnswer]) -> dict[str, float]:
    """Return what is counted in the answers to each set's prompts: instructions kept, the mean of words, and how many did
    not end."""
    prompts = asked.all

    def counted(places: slice) -> dict[str, float]:
        some = answers[places]
        texts = [answer.text for answer in some]
        words = sum(len(words_of(text)) for text in texts) / len(some)
        unended = sum(not answer.has_ended for answer in some) / len(some)
        return checker_rates(texts, prompts[places]) | {"answers/mean_words": words, UNENDED: unended}

    return asked.metrics(counted)


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
