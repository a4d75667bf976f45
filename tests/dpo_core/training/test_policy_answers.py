"""Answers and the divergence while a policy is trained: what the evaluation after training finds, and nothing of the run
changes. On several ranks and every back end: ``engine/test_sharded.py``."""

import signal

import pytest
import torch

from dpo_core.contract.answers_file import (
    ANSWERS_FILE,
    MOST_ANSWERS,
    MOST_CHARACTERS,
    MOST_EVALUATIONS,
    AnswersOfStep,
    ToldAnswer,
    keep_answers,
    read_answers,
    side_by_side,
)
from dpo_core.contract.config import AdapterConfig, OptimConfig
from dpo_core.contract.errors import NonFinite, PolicyDegraded, Preempted
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.keep_best import KeepBest
from dpo_core.contract.metric_names import set_and_metric
from dpo_core.engine.distributed import start_accelerator
from dpo_core.engine.master import MasterEngine
from dpo_core.model.forward import PairScorer
from dpo_core.model.generate import Generation, sample_answers
from dpo_core.model.load import load_model
from dpo_core.training import policy_answers, while_training
from dpo_core.training.history import drop_after
from dpo_core.training.start_weights import StartWeights
from dpo_core.training.trainer import Trainer
from tests.dpo_core.training.test_held_out import as_checkpoint
from tests.dpo_core.training.test_resume import assert_same_run
from tests.step_process import evaluations_in
from tests.tiny_models import make_tokenizer
from tests.tiny_stage import TinyStage, make_sets, run_here

ASKED = {"num_prompts": 3, "max_new_tokens": 8, "measure_kl": True}
FOUND = ("answers/mean_words", "checker/pass_rate", "kl/per_token", "kl/per_answer")


def job_in(stage: TinyStage, folder, evaluation: dict | None = None, **more) -> TrainJob:
    """9 steps, evaluated after 2, 4, 6, 8 and 9 of them."""
    settings = EvaluationConfig(**{"every": 2, "answers_every": 2, **ASKED, **(evaluation or {})})
    return stage.train_job(
        folder, evaluation=settings, checkpoint_every=4, gradient_checkpointing=True, **more
    )


def untimed(folder) -> list[dict]:
    return [
        {name: value for name, value in one.items() if name != "evaluation_seconds"}
        for one in evaluations_in(folder)
    ]


@pytest.fixture(scope="module")
def sets(stage, tmp_path_factory):
    return make_sets({"safety": 4, "maths": 2}, stage.checkpoint, tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def without(stage, tmp_path_factory):
    folder = tmp_path_factory.mktemp("without")
    return run_here(stage.train_job(folder, checkpoint_every=4, gradient_checkpointing=True))


@pytest.fixture(scope="module")
def whole(stage, sets, tmp_path_factory):
    return run_here(job_in(stage, tmp_path_factory.mktemp("whole"), sets=sets))


def test_every_second_evaluation_has_answers_and_the_run_is_the_same(whole, without):
    assert_same_run(whole, without)
    found = evaluations_in(whole.metrics_path.parent)
    assert [one["step"] for one in found] == [0, 2, 4, 6, 8, 9]
    assert [one["step"] for one in found if "answers/mean_words" in one] == [0, 4, 8, 9]
    assert "loss" not in found[0]
    assert found[0]["kl/per_token"] == 0
    assert all(one["kl/per_token"] != 0 for one in found[1:] if "kl/per_token" in one)


def test_the_last_answers_are_those_of_the_evaluation_after_training(stage, sets, whole, tmp_path):
    trained = as_checkpoint(tmp_path / "model", whole)
    job = stage.evaluate_job(tmp_path / "evaluation", trained, **ASKED).model_copy(update={"sets": sets})
    after = run_here(job.at(tmp_path / "evaluation"))
    found = evaluations_in(whole.metrics_path.parent)
    for of in ("", "held_out/safety/", "held_out/maths/"):
        for name in FOUND:
            assert found[-1][of + name] == pytest.approx(after.after[of + name], rel=1e-4, abs=1e-6), (
                of + name
            )
        assert found[0][of + "answers/mean_words"] == after.before[of + "answers/mean_words"]


@pytest.mark.parametrize(
    ("kind", "cut", "said"),
    [
        ("greedy_answers", 1, ["evaluation of step 0, before"]),
        ("greedy_answers", 2, ["checkpoint of step 4", "evaluation of step 4, before"]),
        ("sampled_pairs", 4, ["checkpoint of step 9"]),  # of the last one
    ],
)
def test_one_that_is_cut_off_while_it_answers_is_made_again(
    stage, sets, whole, tmp_path, monkeypatch, kind, cut, said
):
    """Also where the start that would make it is asked to stop in it again: no step is taken before it is made."""
    answered, calls = getattr(policy_answers, kind), []

    def asked_to_stop(*given):
        calls.append(kind)
        if len(calls) == cut:
            signal.raise_signal(signal.SIGTERM)
        return answered(*given)

    monkeypatch.setattr(policy_answers, kind, asked_to_stop)
    job = job_in(stage, tmp_path, sets=sets)
    for words in said:
        with pytest.raises(Preempted, match=words):
            run_here(job)
        calls[:] = [kind] * (cut - 1)
    steps = [one["step"] for one in evaluations_in(whole.metrics_path.parent)]
    resumed = {1: None, 2: 4, 4: 9}[cut]
    assert [one["step"] for one in evaluations_in(tmp_path)] == [
        step for step in steps if step < (resumed or 0)
    ]
    monkeypatch.undo()
    result = run_here(job)
    assert result.resumed_from_step == resumed
    assert_same_run(result, whole)
    assert untimed(tmp_path) == untimed(whole.metrics_path.parent)


def test_of_an_adapter_the_reference_is_the_model_without_it(stage, tmp_path):
    adapter = AdapterConfig(kind="lora", rank=4)
    with_answers = run_here(job_in(stage, tmp_path / "with", adapter=adapter))
    alone = run_here(
        stage.train_job(tmp_path / "alone", adapter=adapter, checkpoint_every=4, gradient_checkpointing=True)
    )
    assert_same_run(with_answers, alone)
    found = [one for one in evaluations_in(tmp_path / "with") if "kl/per_token" in one]
    assert [one["step"] for one in found] == [0, 4, 8, 9]
    assert found[0]["kl/per_token"] == 0 != found[-1]["kl/per_token"]


def test_with_bf16_weights_the_masters_come_back_to_the_bit(stage):
    scorer = PairScorer(load_model(stage.checkpoint), "bf16_pure")
    engine = MasterEngine.start(start_accelerator(), scorer, OptimConfig())
    start = StartWeights(engine)
    with torch.no_grad():
        for number, master in enumerate(engine.masters.values()):
            master.add_(torch.randn(master.shape, generator=torch.Generator().manual_seed(number)) * 1e-3)
    engine.spread_weights()
    now = {name: value.clone() for name, value in engine.masters.items()}
    rounded = {name: value.clone() for name, value in scorer.model.named_parameters()}
    with start.in_place():
        first = dict(load_model(stage.checkpoint).named_parameters())
        for name, weight in scorer.model.named_parameters():
            assert torch.equal(weight, first[name].bfloat16())
    assert all(torch.equal(engine.masters[name], value) for name, value in now.items())
    assert all(torch.equal(weight, rounded[name]) for name, weight in scorer.model.named_parameters())


@pytest.mark.parametrize(
    ("sign", "bounds", "words"),
    [
        ("length", {"answers_grow_to": 1e-6}, "Greedy answers are"),
        ("shortening", {"answers_shrink_to": 0.8}, "Greedy answers are only"),
        ("kl", {"kl_reaches": 1e-9}, "nats a token from its reference"),
    ],
)
def test_a_sign_of_the_answers_ends_the_run(stage, tmp_path, sign, bounds, words):
    """Of a learning rate that is far too large answers are three words in place of four, all three together."""
    warnings = {"warnings": bounds | {"stop": [sign]}, "answers_every": 1}
    with pytest.raises(PolicyDegraded, match=f"After step [2-9]: .*{words}"):
        run_here(job_in(stage, tmp_path, warnings, learning_rate=1e-2))


def test_the_best_step_is_chosen_among_those_that_answered(stage, sets, whole, tmp_path):
    found = [one for one in evaluations_in(whole.metrics_path.parent)[1:] if "kl/per_token" in one]
    keep = KeepBest(metric="held_out/safety/kl/per_token", mode="min")
    result = run_here(job_in(stage, tmp_path, keep_best=keep, sets=sets))
    expected = min(found, key=lambda one: one["held_out/safety/kl/per_token"])
    assert (result.best.step, result.best.num_evaluations) == (expected["step"], 3)


def test_a_rank_without_a_prompt_samples_nothing(stage):
    assert sample_answers(load_model(stage.checkpoint), make_tokenizer(), [], [], Generation(4, 2)) == []


def edited(stage, folder, monkeypatch, first: dict, then: dict, sets=(None, None)) -> list[dict]:
    """The evaluations of a run that is killed behind the checkpoint of step 4 and goes on with other settings or sets."""
    after_step = while_training.Evaluations.after_step

    def dies(self, step, seconds):
        if step == 6:
            raise KeyboardInterrupt
        after_step(self, step, seconds)

    monkeypatch.setattr(while_training.Evaluations, "after_step", dies)
    before, after = (
        job_in(stage, folder, settings, sets=some) for settings, some in zip((first, then), sets, strict=True)
    )
    assert before.fingerprint == after.fingerprint
    with pytest.raises(KeyboardInterrupt):
        run_here(before)
    monkeypatch.undo()
    assert run_here(after).resumed_from_step == 4
    return untimed(folder)


def test_answers_asked_otherwise_in_the_middle_are_compared_with_a_start_asked_likewise(
    stage, sets, tmp_path, monkeypatch
):
    shorter = {"num_prompts": 2, "max_new_tokens": 4}
    throughout = untimed(run_here(job_in(stage, tmp_path / "all", shorter, sets=sets)).metrics_path.parent)
    found = edited(stage, tmp_path / "run", monkeypatch, {}, shorter, (sets, sets))
    assert found[0] == throughout[0]  # the start's, though the policy has moved on
    assert found[3:] == throughout[3:]
    assert not [
        name for name in found[2] if set_and_metric(name)[1].startswith(("answers/", "kl/", "checker/"))
    ]
    assert {name: throughout[2][name] for name in found[2]} == found[2]  # of pairs they are the same
    told = read_answers(tmp_path / "run" / ANSWERS_FILE)
    assert [one.step for one in told] == [0, 8, 9]
    assert {len(one.answers) for one in told} == {2 + 2 + 2}


def test_answers_that_are_asked_for_only_later_have_the_start_s_before_them(stage, tmp_path, monkeypatch):
    whole = untimed(run_here(job_in(stage, tmp_path / "all")).metrics_path.parent)
    found = edited(stage, tmp_path / "run", monkeypatch, {"answers_every": None, "measure_kl": False}, {})
    assert found[0] == whole[0]
    assert found[3:] == whole[3:]


def test_other_pairs_under_a_set_s_name_leave_none_of_the_old_figures(stage, sets, tmp_path, monkeypatch):
    others = make_sets({"safety": 4, "maths": 3}, stage.checkpoint, tmp_path / "sets")  # one set is the same
    quiet = {"answers_every": None, "measure_kl": False}
    found = edited(stage, tmp_path / "run", monkeypatch, quiet, quiet, (sets, others))
    assert [one["step"] for one in found] == [2, 4, 6, 8, 9]
    assert [one.get("held_out/maths/pairs") for one in found] == [None, None, 3, 3, 3]
    assert [one["held_out/safety/pairs"] for one in found] == [4] * 5


def test_a_few_answers_are_kept_and_no_more_than_the_file_holds(whole, tmp_path):
    told = read_answers(whole.metrics_path.parent / ANSWERS_FILE)
    assert [one.step for one in told] == [0, 4, 8, 9]
    assert len({tuple(answer.prompt for answer in one.answers) for one in told}) == 1
    assert all(answer.passes is not None for one in told for answer in one.answers)
    step, pairs = side_by_side(told)
    assert step == 9
    assert [pair.before for pair in pairs] == [answer.answer for answer in told[0].answers]
    long = ToldAnswer.cut("p" * 9000, "a" * 9000, None)
    for number in range(60):
        keep_answers(tmp_path / ANSWERS_FILE, AnswersOfStep(step=number, answers=(long,) * MOST_ANSWERS))
    kept = [one.step for one in read_answers(tmp_path / ANSWERS_FILE)]
    assert kept == [0, *range(60 - MOST_EVALUATIONS + 1, 60)]
    assert (tmp_path / ANSWERS_FILE).stat().st_size < MOST_EVALUATIONS * MOST_ANSWERS * 2 * (
        MOST_CHARACTERS + 50
    )
    assert side_by_side(()) is side_by_side(told[:1]) is None


def test_prompts_that_are_shown_alike_keep_their_own_answers_also_after_a_restart(tmp_path):
    """The last turn is shown, and a text may hold what ends a line elsewhere."""
    path = tmp_path / ANSWERS_FILE
    for step in (0, 4, 8):
        told = [ToldAnswer(prompt="go on\u2028please", answer=f"{name} {step}") for name in ("one", "two")]
        keep_answers(path, AnswersOfStep(step=step, answers=tuple(told)))
    drop_after(path, 4)
    step, pairs = side_by_side(read_answers(path))
    assert step == 4
    assert [(pair.before, pair.after) for pair in pairs] == [("one 0", "one 4"), ("two 0", "two 4")]


def test_a_start_that_took_no_step_asks_all_of_other_prompts_before_the_first(
    stage, sets, tmp_path, monkeypatch
):
    """Out of memory in the first step, say, and started again with more prompts."""
    fewer, more = ({"num_prompts": number, "max_new_tokens": 4} for number in (2, 4))

    def fail(*_):
        raise NonFinite("at the first step")

    monkeypatch.setattr(Trainer, "step_batches", fail)
    with pytest.raises(NonFinite, match="at the first step"):
        run_here(job_in(stage, tmp_path / "run", fewer, sets=sets))
    assert [one["step"] for one in untimed(tmp_path / "run")] == [0]
    monkeypatch.undo()
    result = run_here(job_in(stage, tmp_path / "run", more, sets=sets))
    throughout = run_here(job_in(stage, tmp_path / "all", more, sets=sets))
    assert untimed(result.metrics_path.parent) == untimed(throughout.metrics_path.parent)
    assert read_answers(tmp_path / "run" / ANSWERS_FILE)[0].step == 0
