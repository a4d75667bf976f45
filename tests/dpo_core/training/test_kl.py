"""The measured KL divergence against sums by hand, against the exact divergence, and against itself in other batches."""

import math

import numpy as np
import pytest
import torch

from dpo_core.data.pair_dataset import PairDataset
from dpo_core.engine.distributed import start_accelerator
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.model.forward import PairScorer
from dpo_core.model.generate import Generation, end_token_ids, sample_answers
from dpo_core.model.load import load_model
from dpo_core.training.kl import _pair, kl_metrics, sampled_pairs
from tests.dpo_core.model.test_forward import by_hand
from tests.tiny_models import make_model, make_tokenizer
from tests.tiny_stage import TinyStage, checkpoint_ref, run_here


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model with other random weights: far from the stage's own."""
    return checkpoint_ref(make_model(tmp_path_factory.mktemp("other"), seed=1))


def prompt_logps(checkpoint, prompt_ids) -> torch.Tensor:
    with torch.no_grad():
        return (
            load_model(checkpoint)(torch.tensor([prompt_ids.tolist()])).logits[0, -1].double().log_softmax(-1)
        )


def test_it_is_the_mean_log_ratio_of_sampled_answers(stage: TinyStage, other, tmp_path):
    job = stage.evaluate_job(tmp_path, other, num_prompts=4, max_new_tokens=12, measure_kl=True)
    after = run_here(job).after
    dataset = PairDataset.open(stage.data.path, "held_out")
    prompts = [dataset.prompt(row) for row in range(4)]
    policy, reference = load_model(other), load_model(stage.checkpoint)
    pairs = sampled_pairs(
        job, other, PairScorer(policy, "fp32"), prompts, lambda _: None, start_accelerator()
    )
    sides = [
        side
        for pair in pairs
        for side in ((pair.chosen_ids, pair.chosen_trained), (pair.rejected_ids, pair.rejected_trained))
    ]
    ratios = np.array([by_hand(policy, *side) - by_hand(reference, *side) for side in sides])
    tokens = np.array([trained.sum() for _, trained in sides])
    assert after["kl/per_answer"] == pytest.approx(ratios.mean(), rel=1e-4)
    assert after["kl/per_token"] == pytest.approx(ratios.sum() / tokens.sum(), rel=1e-4)
    assert 0 < after["kl/per_token_stderr"] < after["kl/per_token"]


def test_a_policy_that_is_its_reference_has_none(stage: TinyStage, tmp_path):
    job = stage.evaluate_job(tmp_path, stage.checkpoint, num_prompts=4, max_new_tokens=8, measure_kl=True)
    after = run_here(job).after
    assert (after["kl/per_token"], after["kl/per_answer"]) == (0.0, 0.0)


def test_answers_end_where_the_model_ends_them_and_their_end_counts(stage: TinyStage, tmp_path):
    job = stage.evaluate_job(tmp_path, stage.checkpoint, max_new_tokens=40)
    dataset, model = PairDataset.open(stage.data.path, "held_out"), load_model(stage.checkpoint)
    prompts = [dataset.prompt(row) for row in range(6)]
    pairs = sampled_pairs(
        job, stage.checkpoint, PairScorer(model, "fp32"), prompts, lambda _: None, start_accelerator()
    )
    ends = end_token_ids(model, make_tokenizer())
    answers = [
        ids[trained]
        for pair in pairs
        for ids, trained in (
            (pair.chosen_ids, pair.chosen_trained),
            (pair.rejected_ids, pair.rejected_trained),
        )
    ]
    ended = [answer for answer in answers if answer[-1] in ends]
    assert ended, "no sampled answer came to its end: raise max_new_tokens"
    assert all(not set(answer[:-1]) & set(ends) for answer in answers)
    assert all(len(answer) == 40 for answer in answers if answer[-1] not in ends)


def test_samples_follow_the_model_and_their_mean_is_the_exact_divergence(stage: TinyStage, other):
    """One token an answer, where the divergence is a sum over the vocabulary."""
    prompt_ids = PairDataset.open(stage.data.path, "held_out").prompt(0).prompt_ids
    logps, reference = prompt_logps(other, prompt_ids), prompt_logps(stage.checkpoint, prompt_ids)
    draws = [np.random.default_rng([1, number]) for number in range(4000)]
    answers = sample_answers(
        load_model(other), make_tokenizer(), [prompt_ids] * 4000, draws, Generation(1, 500)
    )
    tokens = torch.tensor([answer[0] for answer in answers])
    ratios = (logps - reference)[tokens]
    exact = float((logps.exp() * (logps - reference)).sum())
    assert float(ratios.mean()) == pytest.approx(exact, abs=4 * float(ratios.std()) / math.sqrt(4000))
    likeliest = int(logps.argmax())
    share, p = float((tokens == likeliest).double().mean()), math.exp(logps[likeliest])
    assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000))


def test_a_sample_does_not_depend_on_its_batch(stage: TinyStage):
    dataset, model, tokenizer = (
        PairDataset.open(stage.data.path, "held_out"),
        load_model(stage.checkpoint),
        make_tokenizer(),
    )
    prompts = [dataset.prompt(row).prompt_ids for row in range(6)]

    def sampled(batch_size: int, numbers: list[int]) -> dict[int, list[int]]:
        draws = [np.random.default_rng([3, number]) for number in numbers]
        answers = sample_answers(
            model, tokenizer, [prompts[number] for number in numbers], draws, Generation(16, batch_size)
        )
        return dict(zip(numbers, answers, strict=True))

    together = sampled(6, [0, 1, 2, 3, 4, 5])
    assert together == sampled(1, [5, 4, 3, 2, 1, 0]) == sampled(4, [0, 1, 2, 3, 4, 5])
    assert len({tuple(answer) for answer in together.values()}) == 6


def test_the_standard_error_counts_prompts():
    def logps(first: list[float], second: list[float], tokens: list[float]) -> PairLogps:
        sums = torch.tensor([first, second])
        return PairLogps(
            sums[0], sums[1], torch.tensor(tokens), torch.tensor(tokens), *torch.zeros(2, len(tokens))
        )

    policy, reference = logps([1.0, 3.0], [1.0, 3.0], [2.0, 2.0]), logps([0.0, 0.0], [0.0, 0.0], [2.0, 2.0])
    metrics = kl_metrics(policy, reference)  # log ratios of prompts: 2 and 6 over 4 tokens each
    assert metrics["kl/per_token"] == pytest.approx(8 / 8)
    assert metrics["kl/per_answer"] == pytest.approx(2.0)
    assert metrics["kl/per_token_stderr"] == pytest.approx(np.std([2 / 4, 6 / 4], ddof=1) / math.sqrt(2))
    assert "kl/per_token_stderr" not in kl_metrics(policy[:1], reference[:1])


def test_an_answer_ends_with_the_places_that_its_model_has():
    """The last token of an answer needs no place to be drawn, and one to be scored."""
    prompt = np.arange(10, dtype=np.int32)
    pair = _pair(prompt, [1, 2, 3], [4], most=12)
    assert (len(pair.chosen_ids), len(pair.rejected_ids)) == (12, 11)
    assert pair.chosen_ids[10:].tolist() == [1, 2]
