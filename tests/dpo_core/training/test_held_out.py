"""The held-out pairs measured while a run trains: when, what, and that the run is the same as without."""

import itertools
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dpo_core.contract import warning_signs
from dpo_core.contract.errors import ConfigError, PolicyDegraded, Preempted
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.keep_best import KeepBest
from dpo_core.contract.metric_names import of_set
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.store import sha256_file
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import read_aligned
from dpo_core.loss.losses import LossOutput
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.model.load import load_model
from dpo_core.training import held_out, trainer, while_training
from tests.dpo_core.model.test_forward import by_hand
from tests.dpo_core.training.test_resume import assert_same_run
from tests.step_process import evaluations_in
from tests.tiny_models import make_model
from tests.tiny_stage import TinyStage, checkpoint_ref, make_rows, make_sets, mix, reference_job, run_here

MEASURED = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps_per_token/rejected")


def job_in(stage: TinyStage, folder, **evaluation) -> TrainJob:
    """9 steps."""
    return stage.train_job(folder, evaluation=EvaluationConfig(**evaluation), checkpoint_every=4)


@pytest.fixture(scope="module")
def whole(stage, tmp_path_factory):
    return run_here(job_in(stage, tmp_path_factory.mktemp("whole"), every=2))


def untimed(folder) -> list[dict]:
    return [
        {name: value for name, value in one.items() if name != "evaluation_seconds"}
        for one in evaluations_in(folder)
    ]


def test_the_run_is_the_same_as_without_and_has_an_evaluation_every_n_steps_and_at_the_end(
    stage, whole, tmp_path
):
    without = run_here(job_in(stage, tmp_path))
    assert_same_run(whole, without)
    assert evaluations_in(tmp_path) == []
    found = evaluations_in(whole.metrics_path.parent)
    assert [one["step"] for one in found] == [2, 4, 6, 8, 9]
    assert [one["epoch"] for one in found] == pytest.approx([step / 9 for step in (2, 4, 6, 8, 9)])
    assert {one["pairs"] for one in found} == {6}


def test_an_epoch_ends_with_one(stage, tmp_path):
    run_here(stage.train_job(tmp_path, evaluation=EvaluationConfig(every="epoch"), num_epochs=2))
    assert [one["step"] for one in evaluations_in(tmp_path)] == [9, 18]


def as_checkpoint(folder, trained) -> CheckpointRef:
    """Trained weights as the evaluation step is given them."""
    model = make_model(folder)
    (model / "model.safetensors").write_bytes((trained.weights_path / "model.safetensors").read_bytes())
    return checkpoint_ref(model)


def test_the_last_one_is_what_the_evaluation_after_training_finds(stage, whole, tmp_path):
    after = run_here(
        stage.evaluate_job(tmp_path / "evaluation", as_checkpoint(tmp_path / "model", whole), num_prompts=0)
    ).after
    last = evaluations_in(whole.metrics_path.parent)[-1]
    for name in MEASURED:
        assert last[name] == pytest.approx(after[name], rel=1e-5, abs=1e-6), name


def test_what_is_scored_piece_by_piece_is_the_same(stage, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(while_training, "PAIRS_BETWEEN_LOOKS", 4)  # 6 pairs: a piece that is not full
    run_here(job_in(stage, tmp_path, every=2))
    ours, theirs = evaluations_in(tmp_path), evaluations_in(whole.metrics_path.parent)
    for name in MEASURED:
        assert [one[name] for one in ours] == pytest.approx([one[name] for one in theirs], rel=1e-5), name


def asked_to_stop_in_call(number: int, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Have SIGTERM come when pairs are scored for the n-th time; an evaluation does so twice. -> the rows of each call"""
    score_pairs, calls = while_training.score_pairs, []

    def asked(*given, rows):
        calls.append(rows)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return score_pairs(*given, rows=rows)

    monkeypatch.setattr(while_training, "score_pairs", asked)
    monkeypatch.setattr(while_training, "PAIRS_BETWEEN_LOOKS", 4)
    return calls


def test_one_that_a_request_to_stop_cuts_off_is_made_when_the_run_goes_on(
    stage, whole, tmp_path, monkeypatch
):
    calls = asked_to_stop_in_call(3, monkeypatch)  # of the second evaluation
    job = job_in(stage, tmp_path, every=3)
    with pytest.raises(Preempted, match="checkpoint of step 6"):
        run_here(job)
    assert len(calls) == 3  # nothing of it was scored after the request
    assert [one["step"] for one in evaluations_in(tmp_path)] == [3]
    result = run_here(job)
    assert result.resumed_from_step == 6
    assert_same_run(result, whole)
    assert [one["step"] for one in evaluations_in(tmp_path)] == [3, 6, 9]


def test_those_of_steps_that_are_taken_again_are_made_again(stage, whole, tmp_path, monkeypatch):
    """A run that dies after an evaluation, before the checkpoint behind it."""
    after_step = while_training.Evaluations.after_step

    def dies(self, step, seconds):
        after_step(self, step, seconds)
        if step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(while_training.Evaluations, "after_step", dies)
    job = job_in(stage, tmp_path, every=2)
    with pytest.raises(KeyboardInterrupt):
        run_here(job)
    assert [one["step"] for one in evaluations_in(tmp_path)] == [2, 4, 6]
    monkeypatch.undo()
    result = run_here(job)
    assert result.resumed_from_step == 4
    assert untimed(tmp_path) == untimed(whole.metrics_path.parent)
    assert sha256_file(result.weights_path / "model.safetensors") == sha256_file(
        whole.weights_path / "model.safetensors"
    )


@pytest.fixture(scope="module")
def sets(stage, tmp_path_factory):
    return make_sets({"safety": 7, "maths": 4}, stage.checkpoint, tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def whole_with_sets(stage, sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("with-sets")
    return run_here(job_in(stage, folder, every=3).model_copy(update={"sets": sets}).at(folder))


def test_each_named_set_is_measured_by_itself_and_the_run_is_the_same(stage, whole, whole_with_sets, sets):
    assert_same_run(whole_with_sets, whole)
    found = evaluations_in(whole_with_sets.metrics_path.parent)
    assert [one["step"] for one in found] == [3, 6, 9]
    assert {(one["pairs"], one["held_out/safety/pairs"], one["held_out/maths/pairs"]) for one in found} == {
        (6, 7, 4)
    }
    mixture = evaluations_in(whole.metrics_path.parent)[2]  # step 6
    assert [found[1][name] for name in MEASURED] == pytest.approx([mixture[name] for name in MEASURED])


def test_the_figures_of_a_set_are_those_of_its_pairs_alone(stage, whole_with_sets, sets, tmp_path):
    """Against sums by hand, one sequence at a time, and the evaluation after training."""
    last = evaluations_in(whole_with_sets.metrics_path.parent)[-1]
    trained = as_checkpoint(tmp_path / "model", whole_with_sets)
    job = stage.evaluate_job(tmp_path / "both", trained, num_prompts=2, max_new_tokens=4)
    both = run_here(job.model_copy(update={"sets": sets}).at(tmp_path / "both"))
    here, after, model = PairDataset.open(sets.data.path, "held_out"), both.after, load_model(trained)
    reference = read_aligned(sets.reference.path, "held_out", here.row_keys)
    for number, (name, size) in enumerate({"safety": 7, "maths": 4}.items()):
        assert after[of_set(name, "pairs")] == size
        for metric in MEASURED:
            assert last[of_set(name, metric)] == pytest.approx(
                after[of_set(name, metric)], rel=1e-5, abs=1e-6
            )
        mine = np.flatnonzero(here.sources == number)
        sums = np.array([by_hand(model, here[i].chosen_ids, here[i].chosen_trained) for i in mine.tolist()])
        assert after[of_set(name, "logps/chosen")] == pytest.approx(sums.mean(), rel=1e-4)
        gained = 0.5 * (sums - reference.sums[mine, 0])
        assert after[of_set(name, "rewards/chosen")] == pytest.approx(gained.mean(), rel=1e-3, abs=1e-4)
        assert both.before[of_set(name, "rewards/accuracies")] == 0.5
        assert len(both.set_answers[name]) == 2
        passed = [answer.after_passes for answer in both.set_answers[name]]
        assert after[of_set(name, "checker/pass_rate")] == sum(passed) / 2
    assert len(both.answers) == 2
    assert both.num_pairs == 6


def test_the_best_step_may_be_chosen_by_a_set(stage, sets, whole_with_sets, tmp_path):
    keep = KeepBest(metric="held_out/maths/loss")
    job = stage.train_job(tmp_path, evaluation=EvaluationConfig(every=3), keep_best=keep, sets=sets)
    found = evaluations_in(whole_with_sets.metrics_path.parent)
    expected = min(found, key=lambda one: one["held_out/maths/loss"])["step"]
    assert run_here(job).best.step == expected
    without = job.model_copy(update={"sets": None})
    assert without.fingerprint != job.fingerprint
    with pytest.raises(ConfigError, match=r"held_out/maths/loss, which evaluation\.every does not measure"):
        run_here(without.at(tmp_path / "without"))


def test_without_pairs_of_the_mixture_the_sets_are_measured_alone(stage, sets, tmp_path):
    data = mix(make_rows(12), stage.checkpoint, tmp_path / "data", held_out="0")
    reference = run_here(reference_job(tmp_path / "reference", data, stage.checkpoint)).reference
    alone = {"data": data, "reference": reference, "sets": sets}
    run_here(job_in(stage, tmp_path / "run", every=2).model_copy(update=alone).at(tmp_path / "run"))
    found = evaluations_in(tmp_path / "run")
    assert [one["step"] for one in found] == [2, 3]
    assert "loss" not in found[0]
    assert found[0]["held_out/safety/loss"] > 0
    job = stage.evaluate_job(tmp_path / "evaluation", stage.checkpoint, num_prompts=2, max_new_tokens=4)
    result = run_here(job.model_copy(update=alone).at(tmp_path / "evaluation"))
    assert (result.num_pairs, result.num_prompts, result.answers) == (0, 0, ())
    assert result.after["held_out/safety/rewards/accuracies"] == 0.5


def test_by_the_clock_it_is_measured_once_training_has_taken_so_long(stage, whole, tmp_path, monkeypatch):
    """Steps of 20 s by this clock; the one that is cut off is made again where the run goes on."""
    now = itertools.count(0, 20)
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    result = run_here(job_in(stage, tmp_path / "whole", every_minutes=1))
    assert_same_run(result, whole)
    assert [one["step"] for one in evaluations_in(tmp_path / "whole")] == [3, 6, 9]
    asked_to_stop_in_call(1, monkeypatch)
    job = job_in(stage, tmp_path / "cut", every_minutes=1)
    with pytest.raises(Preempted, match="checkpoint of step 3"):
        run_here(job)
    assert evaluations_in(tmp_path / "cut") == []
    result = run_here(job)
    assert result.resumed_from_step == 3
    assert_same_run(result, whole)
    assert [one["step"] for one in evaluations_in(tmp_path / "cut")] == [3, 6, 9]


def test_margins_that_follow_length_are_correlated_with_it():
    """40 pairs whose margin is twice the difference in tokens, but for one, against NumPy."""
    torch.manual_seed(3)
    chosen_tokens, rejected_tokens = torch.randint(5, 50, (2, 40)).float()
    margins = 2 * (chosen_tokens - rejected_tokens)
    margins[7] = 500.0
    zeros = torch.zeros(40)
    policy = PairLogps(zeros, zeros, chosen_tokens, rejected_tokens, zeros, zeros)
    found = held_out.length_correlation(policy, LossOutput(zeros, margins, zeros))
    expected = np.corrcoef(margins.numpy(), (chosen_tokens - rejected_tokens).numpy())[0, 1]
    assert found == {"rewards/length_correlation": pytest.approx(expected, rel=1e-5)}
    assert 0.1 < expected < 0.9
    assert held_out.length_correlation(policy, LossOutput(zeros, zeros, zeros)) == {}  # an untrained policy
    few = slice(0, 29)
    assert (
        held_out.length_correlation(policy[few], LossOutput(*[part[few] for part in (zeros, margins, zeros)]))
        == {}
    )


def test_pairs_of_one_prompt_count_together_in_the_error_of_accuracy():
    """By hand: of four clusters that are each all right or all wrong, and of values that are each their own."""
    values = np.array([1, 1, 1, 0, 0, 0, 1, 0.0])
    clusters = np.array([5, 5, 5, 2, 2, 2, 7, 9])
    sums = np.array([1.5, -1.5, 0.5, -0.5])
    assert held_out.clustered_stderr(values, clusters) == pytest.approx(np.sqrt(4 / 3 * (sums**2).sum()) / 8)
    alone = held_out.clustered_stderr(values, np.arange(8))
    assert alone == pytest.approx(values.std(ddof=1) / np.sqrt(8))
    assert held_out.clustered_stderr(values, np.zeros(8)) is None


def test_an_accuracy_is_measured_beside_that_of_length_alone(stage):
    """40 pairs of 20 prompts, 30 chosen answers longer; the policy is right in those and in two of the others."""
    chosen_tokens, rejected_tokens = torch.full((40,), 9.0), torch.tensor([7.0] * 30 + [11.0] * 10)
    margins, zeros = torch.tensor([1.0] * 32 + [-1.0] * 8), torch.zeros(40)
    policy = PairLogps(zeros, zeros, chosen_tokens, rejected_tokens, zeros, zeros)
    prompts, reference = np.repeat(np.arange(20), 2), PairLogps(margins, *[zeros] * 5)
    found = held_out._against_chance(policy, reference, LossOutput(zeros, margins, zeros), prompts)
    assert found["prompts"] == 20
    assert found["logps/margins_moved"] == 1.0
    assert found["logps_per_token/chosen_lost"] == 0.0
    assert found["rewards/accuracies_stderr"] == pytest.approx(
        np.array([1.0] * 16 + [0.0] * 4).std(ddof=1) / np.sqrt(20)
    )
    assert found["length_rule/accuracies"] == 0.75
    assert found["length_rule/accuracies_above"] == pytest.approx(2 / 40)
    turned = PairLogps(zeros, zeros, rejected_tokens, chosen_tokens, zeros, zeros)  # the shorter is chosen
    assert (
        held_out._against_chance(turned, None, LossOutput(zeros, margins, zeros), prompts)[
            "length_rule/accuracies"
        ]
        == 0.75
    )
    few = held_out._against_chance(
        policy[:9], None, LossOutput(zeros[:9], margins[:9], zeros[:9]), prompts[:9]
    )
    assert few.keys() == {"prompts", "rewards/accuracies_stderr"}


def test_a_chosen_answer_is_lost_that_is_three_nats_a_token_less_likely_than_under_the_reference():
    """Five tokens each: 14 and 15 nats less, 40 more; nothing of an objective without a reference."""
    zeros, tokens = torch.zeros(3), torch.full((3,), 5.0)
    reference = PairLogps(torch.tensor([-6.0, -6.0, -60.0]), zeros, tokens, tokens, zeros, zeros)
    policy = PairLogps(torch.tensor([-20.0, -21.0, -20.0]), zeros, tokens, tokens, zeros, zeros)
    output, prompts = LossOutput(zeros, zeros, zeros), np.arange(3)
    found = held_out._against_chance(policy, reference, output, prompts)
    assert found["logps_per_token/chosen_lost"] == pytest.approx(1 / 3)
    assert "logps_per_token/chosen_lost" not in held_out._against_chance(policy, None, output, prompts)


def test_held_out_pairs_know_which_of_them_have_one_prompt(stage, tmp_path):
    rows = make_rows(6)
    rows = [{**row, "prompt": rows[number // 3]["prompt"]} for number, row in enumerate(rows)]
    data = mix([*rows, *make_rows(4, seed=3)], stage.checkpoint, tmp_path, held_out="5")
    numbers = PairDataset.open(data.path, "held_out").prompt_numbers
    assert sorted(np.bincount(numbers).tolist()) == [1, 1, 1, 1, 3]


def test_a_sign_ends_the_run_where_the_recipe_says_so_and_it_goes_on_without(
    stage, whole, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(held_out, "FEWEST_PAIRS", 6)
    any_correlation = {"margin_follows_length": 1e-9}
    job = job_in(stage, tmp_path, every=5, warnings=any_correlation | {"stop": ["length_correlation"]})
    for _ in range(2):  # started again it says so again, from the checkpoint of step 4
        with pytest.raises(
            PolicyDegraded, match=r"After step 5: .*Park.* step 4 is good.*without length_corr"
        ):
            run_here(job)
    result = run_here(job_in(stage, tmp_path, every=5, warnings=any_correlation))
    assert result.resumed_from_step == 4
    assert_same_run(result, whole)
    warned = [line for line in caplog.messages if "Park" in line]
    assert len(warned) == 3  # once a start, and not again at the end of the last one


@pytest.mark.parametrize(
    ("name", "bounds", "words"),
    [
        ("displacement", {"chosen_falls_by": 0.5}, "Razin"),
        ("length_rule", {"length_decides": 0.51}, "Length alone"),
        ("no_signal", {"accuracy_stays_below": 0.99}, "no better than a coin"),
    ],
)
def test_a_policy_that_is_destroyed_ends_the_run_by_each_sign(
    stage, tmp_path, monkeypatch, name, bounds, words
):
    """A step of 1 for each weight leaves noise of them: chosen answers are lost, and no pair is told apart."""
    for module in (held_out, warning_signs):
        monkeypatch.setattr(module, "FEWEST_PAIRS", 6)
    evaluation = EvaluationConfig(every=2, warnings=bounds | {"stop": [name]})
    job = stage.train_job(tmp_path, evaluation=evaluation, checkpoint_every=2, learning_rate=1.0)
    with pytest.raises(PolicyDegraded, match=f"After step [24]: .*{words}.*without {name}"):
        run_here(job)
