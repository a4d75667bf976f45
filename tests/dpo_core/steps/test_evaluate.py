"""Held-out metrics and answers, before and after, against values computed by hand."""

from dataclasses import replace

import numpy as np
import pytest

from dpo_core.contract.jobs import EvaluateJob
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.metric_names import (
    EVALUATED,
    HEADLINE,
    LAST_STEP,
    MEANINGS,
    OF_MEMBERS,
    SECOND_NAMES,
    TILES,
)
from dpo_core.contract.refs import CheckpointRef, ReferenceRef
from dpo_core.data.checkers import passes
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import ReferenceRows, read_aligned, write_aligned
from dpo_core.model.generate import Generation, greedy_answers
from dpo_core.model.load import load_model
from dpo_core.training.answers import checker_rates, distinct_prompts
from tests.dpo_core.model.test_forward import by_hand
from tests.tiny_models import make_model, make_tokenizer
from tests.tiny_stage import TinyStage, checkpoint_ref, make_rows, mix, reference_job, run_here


@pytest.fixture(scope="module")
def trained(stage, tmp_path_factory) -> CheckpointRef:
    """The stage's model after four epochs of dpo, as a checkpoint."""
    root = tmp_path_factory.mktemp("trained")
    result = run_here(stage.train_job(root / "run", num_epochs=4))
    folder = make_model(root / "model")
    (folder / "model.safetensors").write_bytes((result.weights_path / "model.safetensors").read_bytes())
    return checkpoint_ref(folder)


@pytest.fixture(scope="module")
def evaluation(stage, trained, tmp_path_factory):
    return run_here(
        stage.evaluate_job(tmp_path_factory.mktemp("evaluation"), trained, num_prompts=4, max_new_tokens=12)
    )


def held_out_by_hand(stage: TinyStage, checkpoint: CheckpointRef) -> dict[str, float]:
    """Metrics of the held-out pairs, one sequence at a time through stock logits."""
    dataset, model = PairDataset.open(stage.data.path, "held_out"), load_model(checkpoint)
    reference = read_aligned(stage.reference.reference.path, "held_out", dataset.row_keys)
    sums = np.array(
        [
            [
                by_hand(model, pair.chosen_ids, pair.chosen_trained),
                by_hand(model, pair.rejected_ids, pair.rejected_trained),
            ]
            for pair in dataset
        ]
    )
    means, rewards = sums / reference.tokens, 0.5 * (sums - reference.sums)  # beta 0.5
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "loss": np.log1p(np.exp(-margins)).mean(),
        "logps/chosen": sums[:, 0].mean(),
        "logps_per_token/chosen": means[:, 0].mean(),
        "logps_per_token/rejected": means[:, 1].mean(),
        "rewards/margins": margins.mean(),
        "ranking/accuracies": (means[:, 0] > means[:, 1]).mean(),
    }


def test_metrics_after_training_are_those_computed_by_hand(stage, trained, evaluation):
    expected = held_out_by_hand(stage, trained)
    assert {name: evaluation.after[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert evaluation.num_pairs == 6


def test_every_figure_has_a_name_for_people(evaluation):
    measured = (
        set(evaluation.after)
        | set(evaluation.before)
        | {"kl/per_token", "kl/per_token_stderr", "kl/per_answer"}
    )
    shown = {*EVALUATED, *HEADLINE, *TILES, *LAST_STEP, *OF_MEMBERS}
    assert (measured | shown) - {*MEANINGS, *SECOND_NAMES} == set()


def test_before_training_the_policy_is_its_reference(stage, evaluation):
    before = evaluation.before
    assert before["rewards/accuracies"] == 0.5  # ties count half
    assert before["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert before["rewards/margins"] == pytest.approx(0, abs=1e-4)
    expected = held_out_by_hand(stage, stage.checkpoint)
    assert before["logps/chosen"] == pytest.approx(expected["logps/chosen"], rel=1e-5)
    assert before["ranking/accuracies"] == pytest.approx(expected["ranking/accuracies"])


def test_the_last_bits_of_the_cache_decide_no_tie(stage, tmp_path):
    keys = PairDataset.open(stage.data.path, "held_out").row_keys
    rows = read_aligned(stage.reference.reference.path, "held_out", keys)
    other_bits = np.nextafter(
        rows.sums, np.float32([0, -np.inf])
    )  # as another batch composition could have left them
    write_aligned(tmp_path / "held_out.npz", keys, ReferenceRows(other_bits, rows.tokens, rows.tails))
    job = stage.evaluate_job(tmp_path / "run", stage.checkpoint, num_prompts=0)
    before = run_here(
        job.model_copy(update={"reference": ReferenceRef(path=tmp_path, fingerprint="other")})
    ).before
    assert (before["rewards/accuracies"], before["rewards/margins"]) == (0.5, 0.0)


def test_training_helped_on_rows_it_never_saw(evaluation):
    assert evaluation.after["rewards/accuracies"] > evaluation.before["rewards/accuracies"]
    assert evaluation.after["loss"] < evaluation.before["loss"]


def test_answers_are_greedy_stand_side_by_side_and_are_judged(stage, trained, evaluation):
    dataset = PairDataset.open(stage.data.path, "held_out")
    prompts = [dataset.prompt(row) for row in range(4)]  # every row of this stage has its own prompt
    tokenizer = make_tokenizer()
    for name, checkpoint in (("before", stage.checkpoint), ("after", trained)):
        answers = [
            greedy_answers(load_model(checkpoint), tokenizer, [prompt.prompt_ids], Generation(12, 1))[0]
            for prompt in prompts
        ]
        expected = [answer.text for answer in answers]
        assert [getattr(answer, name) for answer in evaluation.answers] == expected
        verdicts = [
            passes(answer, prompt.constraints) for answer, prompt in zip(expected, prompts, strict=True)
        ]
        assert [getattr(answer, f"{name}_passes") for answer in evaluation.answers] == verdicts
        metrics = getattr(evaluation, name)
        assert metrics["checker/pass_rate"] == pytest.approx(sum(verdicts) / 4)
        assert metrics["checker/prompts"] == 4
        assert metrics["answers/unended"] == sum(not answer.has_ended for answer in answers) / 4
        assert metrics["answers/mean_words"] == pytest.approx(
            np.mean([len(answer.split()) for answer in expected])
        )
    assert [answer.prompt for answer in evaluation.answers] == [prompt.text for prompt in prompts]
    assert any(answer.before != answer.after for answer in evaluation.answers)


def test_prompts_of_ifevals_format_are_judged_strictly_and_loosely(stage, tmp_path):
    """Two of three keep both instructions once the first line is passed over, one as it stands."""
    ids = ["punctuation:no_comma", "length_constraints:number_words"]
    arguments = [{}, {"num_words": 3, "relation": "at least"}]
    rows = [
        {**row, "constraints": None, "instruction_id_list": ids, "kwargs": arguments} for row in make_rows(4)
    ]
    dataset = PairDataset.open(mix(rows, stage.checkpoint, tmp_path, held_out="3").path, "held_out")
    answers = ["yeast makes gas", "Sure, here:\nyeast makes gas", "no, no"]
    assert checker_rates(answers, [dataset.prompt(row) for row in range(3)]) == {
        "checker/pass_rate": pytest.approx(1 / 3),
        "checker/pass_rate_loose": pytest.approx(2 / 3),
        "checker/instruction_rate": pytest.approx(3 / 6),  # two, its words, none
        "checker/instruction_rate_loose": pytest.approx(4 / 6),
        "checker/prompts": 3,
    }
    assert checker_rates(["yes."], [replace(dataset.prompt(0), constraints=())]) == {}


def test_a_prompt_that_stands_twice_is_asked_once(stage, tmp_path):
    rows = make_rows(6)
    twins = [{**row, "chosen": [{"role": "assistant", "content": "another answer."}]} for row in rows]
    dataset = PairDataset.open(mix(rows + twins, stage.checkpoint, tmp_path, held_out="5").path, "held_out")
    assert len(dataset) == 10
    asked = distinct_prompts(dataset, 8, range(len(dataset)))
    assert len({dataset.prompt(row).text for row in asked}) == len(asked) == 5
    assert len(distinct_prompts(dataset, 3, range(len(dataset)))) == 3
    assert distinct_prompts(dataset, 0, range(len(dataset))) == []


def test_without_held_out_rows_there_is_nothing_to_measure(stage, tmp_path):
    data = mix(make_rows(6), stage.checkpoint, tmp_path / "data", held_out="0")
    reference = run_here(reference_job(tmp_path / "reference", data, stage.checkpoint)).reference
    job = stage.evaluate_job(tmp_path / "run", stage.checkpoint).model_copy(
        update={"data": data, "reference": reference}
    )
    result = run_here(job)
    assert (result.before, result.after, result.num_pairs, result.num_prompts, result.answers) == (
        {},
        {},
        0,
        0,
        (),
    )


def test_an_objective_without_reference_is_measured_without_one(stage, trained, tmp_path):
    job: EvaluateJob = stage.evaluate_job(tmp_path, trained, num_prompts=0)
    result = run_here(job.model_copy(update={"reference": None, "loss": LossConfig(name="simpo", beta=2.0)}))
    margin = result.after["logps_per_token/chosen"] - result.after["logps_per_token/rejected"]
    assert result.after["rewards/margins"] == pytest.approx(2.0 * margin, rel=1e-5)
    assert result.answers == ()
    assert "checker/pass_rate" not in result.after


def test_the_token_budget_changes_no_number(stage, trained, tmp_path, evaluation):
    for budget in (1, 100_000):
        result = run_here(
            stage.evaluate_job(tmp_path / str(budget), trained, num_prompts=0, tokens_per_batch=budget)
        )
        shared = {name: value for name, value in result.after.items() if name in evaluation.after}
        assert shared == pytest.approx({name: evaluation.after[name] for name in shared}, rel=1e-4, abs=1e-5)
