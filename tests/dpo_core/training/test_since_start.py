"""Instructions that are kept no longer, while a policy is trained: counted prompt by prompt, with each look at them."""

import numpy as np
import pytest

from dpo_core.contract.errors import PolicyDegraded
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.warning_signs import CHOSEN, WORDS, WarningBounds
from dpo_core.data.pair_dataset import HeldOutPrompt
from dpo_core.training.answers import AskedPrompts
from dpo_core.training.signs_in_training import SignsInTraining
from dpo_core.training.since_start import START_FILE, changed, outcomes_since, verdicts_of
from tests.step_process import evaluations_in
from tests.tiny_models import make_model
from tests.tiny_stage import WORDS as ENGLISH
from tests.tiny_stage import TinyStage, checkpoint_ref, make_rows, mix, reference_job, run_here

SHORT = ({"name": "max_words", "limit": 2},)
OF_THE_REFERENCE = {CHOSEN: -1.0}


def prompts(*constraints: tuple) -> tuple[HeldOutPrompt, ...]:
    return tuple(HeldOutPrompt("say", np.zeros(1, np.int64), some) for some in constraints)


def row(
    step: int, kept: int, lost: int = 0, gained: int = 0, of: int = 10, **more: float
) -> dict[str, float]:
    """An evaluation with answers to so many prompts."""
    found = {"step": step, WORDS: 20.0, "checker/pass_rate": kept / of, **more}
    changes = {"checker/lost": float(lost), "checker/gained": float(gained)}
    return found if step == 0 else found | {CHOSEN: -1.0} | changes


def test_prompts_that_changed_are_counted_set_by_set():
    asked = AskedPrompts(
        {"": prompts(SHORT, (), SHORT, SHORT), "safety": prompts(SHORT), "maths": prompts(())}
    )
    before = verdicts_of(asked, ["a b", "a b c", "a", "a b c", "a b c", "a"])
    now = verdicts_of(asked, ["a b c", "a", "a", "a b c", "a b", "a b c"])
    assert before == {"": "1-10", "safety": "0", "maths": "-"}
    assert now == {"": "0-10", "safety": "1", "maths": "-"}
    assert changed(before, now) == {
        "checker/lost": 1,
        "checker/gained": 0,
        "held_out/safety/checker/lost": 0,
        "held_out/safety/checker/gained": 1,
    }


def test_of_a_set_that_was_not_asked_before_nothing_is_counted():
    assert changed({}, {"": "11"}) == changed({"": "1"}, {"": "11"}) == {}


def test_a_fall_is_judged_by_the_prompts_that_changed():
    """Ten prompts, of which seven were lost and none gained: 2 / 2^7."""
    (found,) = outcomes_since(row(0, 9), row(50, 2, lost=7), 1)
    assert (found.before, found.after, found.counts) == (0.9, 0.2, pytest.approx(2 / 2**7))
    assert found.in_words == "instructions kept 0.90 to 0.20 (p = 0.016)"


def test_each_look_and_each_set_counts():
    safety = {f"held_out/safety/checker/{name}": value for name, value in (("lost", 0.0), ("gained", 0.0))}
    rate = {"held_out/safety/checker/pass_rate": 1.0}
    own, other = outcomes_since(row(0, 9) | rate, row(50, 2, lost=7) | safety | rate, 3)
    assert own.counts == pytest.approx(3 * 2 * 2 / 2**7)  # three looks at two figures
    assert "(p = 0.016, 0.094 as one of 6 figures)" in own.in_words
    assert other.counts == 1


def test_a_fall_beyond_chance_is_a_sign_with_its_figures_and_accuracy_beside_it():
    signs = SignsInTraining(WarningBounds(stop=("outcome",)), OF_THE_REFERENCE, has_answers=True)
    rows = [
        row(0, 9),
        row(50, 8, lost=1, **{"rewards/accuracies": 0.96}),
        row(100, 1, lost=8, **{"rewards/accuracies": 0.97}),  # 2 / 2^8, looked at twice
    ]
    assert signs.of(rows, 1) == ()
    (sign,) = signs.new(rows)
    assert (sign.name, sign.value, sign.bound) == ("outcome", pytest.approx(2 * 2 / 2**8), 0.05)
    assert "instructions kept 0.90 to 0.10" in sign.words
    assert "while reward accuracy is 0.97 (before: 0.96)" in sign.words
    assert "arXiv 2406.02900" in sign.words
    assert signs.stopping(rows) == (sign,)
    again = [*rows, row(150, 1, lost=8)]
    assert signs.new(again) == ()  # it was told
    assert signs.stopping(again)


@pytest.mark.parametrize(
    "last",
    [
        row(100, 5, lost=4),  # 2 / 2^4 > 0.05
        row(100, 9, lost=5, gained=5),
        row(100, 9, gained=9),
        {name: value for name, value in row(100, 1).items() if "lost" not in name},
    ],
)
def test_what_chance_explains_or_nobody_counted_is_none(last):
    signs = SignsInTraining(WarningBounds(), OF_THE_REFERENCE, has_answers=True)
    assert signs.of([row(0, 9), last], 1) == ()


def test_after_twenty_looks_that_found_nothing_more_is_needed():
    signs = SignsInTraining(WarningBounds(), OF_THE_REFERENCE, has_answers=True)
    looks = [row(step, 9) for step in range(1, 20)]
    assert [sign.name for sign in signs.of([row(0, 9), row(1, 1, lost=8)], 1)] == ["outcome"]
    assert signs.of([row(0, 9), *looks, row(20, 1, lost=8)], 20) == ()  # 20 * 2 / 2^8
    assert signs.of([row(0, 20, of=20), *looks, row(20, 0, lost=20, of=20)], 20)


@pytest.fixture(scope="module")
def growing(tmp_path_factory) -> TinyStage:
    """Long answers are chosen, and every prompt asks for five words at most: what accuracy rewards breaks what is asked."""
    root, rng = tmp_path_factory.mktemp("growing"), np.random.default_rng(3)

    def turn(low: int, high: int) -> list[dict]:
        return [{"role": "assistant", "content": " ".join(rng.choice(ENGLISH, rng.integers(low, high)))}]

    rows = [
        {
            **row,
            "chosen": turn(15, 25),
            "rejected": turn(1, 4),
            "constraints": [{"name": "max_words", "limit": 5}],
        }
        for row in make_rows(60)
    ]
    checkpoint = checkpoint_ref(make_model(root / "model"))
    data = mix(rows, checkpoint, root / "data", "20")
    return TinyStage(root, checkpoint, data, run_here(reference_job(root / "reference", data, checkpoint)))


def run_of(stage: TinyStage, folder, **warnings) -> TrainJob:
    """Ten steps, answers after every second one."""
    asked = {"every": 2, "answers_every": 1, "num_prompts": 20, "max_new_tokens": 12, "warnings": warnings}
    return stage.train_job(
        folder,
        LossConfig(name="dpo", beta=0.1),
        learning_rate=1e-2,
        max_steps=10,
        checkpoint_every=2,
        evaluation=EvaluationConfig(**asked),
    )


def figures(folder) -> list[dict]:
    """Evaluations without what they took."""
    return [
        {name: value for name, value in one.items() if name != "evaluation_seconds"}
        for one in evaluations_in(folder)
    ]


def test_a_run_whose_checker_falls_while_accuracy_is_saturated_warns(growing, tmp_path, caplog):
    run_here(run_of(growing, tmp_path))
    found = figures(tmp_path)
    assert [one["rewards/accuracies"] for one in found[1:]] == [1.0] * 5
    assert found[-1]["checker/pass_rate"] < found[0]["checker/pass_rate"] - 0.5
    for one in found[1:]:
        change = (one["checker/gained"] - one["checker/lost"]) / 20
        assert one["checker/pass_rate"] - found[0]["checker/pass_rate"] == pytest.approx(change)
    (said,) = [line for line in caplog.messages if "Answers got worse" in line]
    assert said.startswith("step 4: ")
    assert "while reward accuracy is 1.00" in said


def test_where_the_recipe_says_so_it_ends_and_goes_on_without(growing, tmp_path):
    """Also where the file with the start's verdicts is damaged meanwhile: its answers are made again."""
    with pytest.raises(PolicyDegraded, match="After step 4: Answers got worse") as ended:
        run_here(run_of(growing, tmp_path / "run", stop=["outcome"]))
    assert "without outcome in evaluation.warnings.stop" in str(ended.value)
    (tmp_path / "run" / START_FILE).write_text('{"kept": ')
    result = run_here(run_of(growing, tmp_path / "run"))
    assert result.resumed_from_step == 2  # the evaluation came before the checkpoint of step 4
    whole = run_here(run_of(growing, tmp_path / "whole"))
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
    assert (tmp_path / "run" / START_FILE).read_text() == (tmp_path / "whole" / START_FILE).read_text()
    assert result.weights_sha256 == whole.weights_sha256
