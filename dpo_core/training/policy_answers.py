"""What a policy answers to held-out prompts while it is trained: length, instructions kept, divergence from the reference.

Answers are the engine's model's, on any back end: where each rank holds all weights it answers its share of the prompts by
itself, else all answer together and go on with rank 0's tokens. Nothing of the run changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dpo_core.contract.answers_file import MOST_ANSWERS, AnswersOfStep, ToldAnswer
from dpo_core.contract.config import ForwardLayout
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.metric_names import ANSWERED, DIVERGENCE, of_set
from dpo_core.data.checkers import passes
from dpo_core.engine.distributed import sum_over_ranks
from dpo_core.engine.engine import Engine
from dpo_core.training.answers import AskedPrompts, CutOff, answer_metrics, asked_prompts, greedy_answers
from dpo_core.training.held_out import MeasuredPairs
from dpo_core.training.kl import kl_metrics, sampled_pairs
from dpo_core.training.scores import Scoring, score_pairs
from dpo_core.training.start_weights import AsReference
from dpo_core.training.stop_request import StopRequest


@dataclass(frozen=True)
class PolicyAnswers:
    """Every method is called by all ranks together."""

    job: TrainJob
    engine: Engine
    layout: ForwardLayout
    prompts: AskedPrompts
    as_reference: AsReference | None  # None: the divergence is not measured
    stop: StopRequest

    def measured(self) -> tuple[dict[str, float], list[str]]:
        """Return what is counted in answers to each set's prompts, and the answers. Raises ``CutOff``, on all ranks, if the
        run was asked to stop meanwhile."""
        job, engine = self.job, self.engine
        greedy = greedy_answers(
            job, job.checkpoint, engine.scorer, self.prompts.all, self._look, engine.accelerator
        )
        metrics = answer_metrics(self.prompts, greedy)
        if self.as_reference:
            metrics |= self._divergence(self.as_reference)
        return metrics, [answer.text for answer in greedy]

    def told(self, step: int, answers: Sequence[str]) -> AnswersOfStep:
        """Return the few of the answers that are kept for people: always to the same prompts."""
        count = min(MOST_ANSWERS, self.job.evaluation.num_samples_shown)
        return AnswersOfStep(
            step=step,
            answers=tuple(
                ToldAnswer.cut(
                    prompt.text, answer, passes(answer, prompt.constraints) if prompt.constraints else None
                )
                for prompt, answer in zip(self.prompts.all[:count], answers, strict=False)
            ),
        )

    def _divergence(self, as_reference: AsReference) -> dict[str, float]:
        """See ``dpo_core.training.kl``."""
        job, accelerator = self.job, self.engine.accelerator
        scoring = Scoring(self.engine.scorer, self.layout, accelerator)
        pairs = sampled_pairs(job, job.checkpoint, scoring.scorer, self.prompts.all, self._look, accelerator)
        policy = score_pairs(scoring, pairs, job)
        with as_reference():
            reference = score_pairs(scoring, pairs, job)
        return self.prompts.metrics(lambda places: kl_metrics(policy[places], reference[places]))

    def _look(self, _: int) -> None:
        """After each batch of answers. Ranks that answer by themselves have unequal numbers of batches, and may not ask each
        other; those that answer together have to."""
        asked, accelerator = float(self.stop.received), self.engine.accelerator
        if self.engine.scorer.is_split:
            asked = float(sum_over_ranks(accelerator, torch.tensor(asked, device=accelerator.device)))
        if asked:
            raise CutOff

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What ``measured`` finds."""
        names = []
        for of, prompts in self.prompts.by_set.items():
            is_checked = any(prompt.constraints for prompt in prompts)
            found = [name for name in ANSWERED if is_checked or not name.startswith("checker/")]
            found += DIVERGENCE if self.as_reference else ()
            names += [of_set(of, name) for name in found if prompts]
        return tuple(names)


def policy_answers(
    job: TrainJob,
    engine: Engine,
    layout: ForwardLayout,
    parts: Sequence[MeasuredPairs],
    as_reference: AsReference | None,
    stop: StopRequest,
) -> PolicyAnswers | None:
    """Return what answers while a run trains; None where that is off."""
    if not job.evaluation.answers_every:
        return None
    prompts = asked_prompts(parts, job.evaluation.num_prompts)
    return PolicyAnswers(job, engine, layout, prompts, as_reference, stop)
