"""What a report opens with: better, worse or cannot tell. Runs that went wrong on purpose, as their figures are."""

import json
from pathlib import Path

import pytest

from dpo_core.contract.jobs import AnswerPair, EvaluateResult
from dpo_core.contract.keep_best import BestStep
from dpo_core.contract.metric_names import label_of
from dpo_core.contract.results import ENVIRONMENT_FILE
from dpo_core.contract.warning_signs import WarningBounds, signs_of
from tasks.report.blocks import Notice
from tasks.report.html import render_html
from tasks.report.looks import looks_of
from tasks.report.page import report_page
from tasks.report.verdict import verdict_of
from tasks.run.device_hours import device_hours
from tasks.run.files import read_run_files
from tasks.sweep.outcomes import MemberOutcome, SweepOutcome
from tests.tasks.made_judgement import judgement
from tests.tasks.made_scores import benchmarks
from tests.tasks.report.made_run import make_run
from tests.tasks.run.growing_run import GrowingRun

SFT = {"rewards/accuracies": 0.5, "logps_per_token/chosen": -1.0, "answers/mean_words": 20.0}
KEPT_MORE = [(False, True)] * 12 + [(True, True)] * 8
KEPT_LESS = [(True, False)] * 12 + [(True, True)] * 8


def verdict(
    after: dict,
    judged: list[tuple[bool, bool]] = (),
    before: dict = SFT,
    num_pairs: int = 200,
    best: BestStep | None = None,
    sweep: SweepOutcome | None = None,
):
    answers = tuple(
        AnswerPair(prompt="p", before="b", after="a", before_passes=old, after_passes=new)
        for old, new in judged
    )
    return verdict_of(
        EvaluateResult(
            job_fingerprint="f" * 64,
            before=before,
            after=SFT | after,
            num_pairs=num_pairs,
            num_prompts=len(answers),
            answers=answers,
        ),
        looks=looks_of(best, sweep),
    )


def best_of(count: int, metric: str = "rewards/accuracies") -> BestStep:
    """The checkpoint that was the best in so many evaluations."""
    return BestStep(
        metric=metric,
        mode="max",
        step=3,
        value=0.6,
        last_step=count,
        last_value=0.5,
        planned_steps=count,
        num_evaluations=count,
    )


def test_more_than_chance_in_pairs_and_in_answers_is_better():
    found = verdict({"rewards/accuracies": 0.8}, KEPT_MORE)
    assert found.in_words == (
        "Better: held-out reward accuracy 0.50 to 0.80 (p < 0.001), instructions kept 0.40 to 1.00 (p < 0.001)"
    )
    assert found.signs == ()


def test_pairs_alone_are_said_to_be_alone():
    found = verdict({"rewards/accuracies": 0.8})
    assert found.answer == "Better"
    assert "nothing was counted in answers" in found.because


def test_labels_that_are_flipped_in_half_of_the_pairs_teach_nothing_that_can_be_told():
    found = verdict({"rewards/accuracies": 0.53}, [(True, True)] * 10)
    assert found.answer == "Cannot tell"
    assert "no more than chance would do" in found.because


def test_the_best_of_many_looks_at_flipped_labels_is_no_better():
    """120 of 200 pairs are rare (p = 0.006), the highest of twenty evaluations of noise is there every few runs."""
    after = {"rewards/accuracies": 0.6}
    assert verdict(after).answer == verdict(after, best=best_of(1)).answer == "Better"
    chosen = verdict(after, best=best_of(20))
    assert chosen.answer == "Cannot tell"
    assert "reward accuracy, best of 20 evaluations, 0.50 to 0.60 (p = 0.11)" in chosen.because
    of_source = best_of(20, "by_source/rows.jsonl/rewards/accuracies")  # some of the same pairs
    assert verdict(after, best=of_source).answer == "Cannot tell"
    assert verdict(after, best=best_of(20, "held_out/maths/loss")).answer == "Better"  # chosen by other pairs
    assert verdict({"rewards/accuracies": 0.8}, best=best_of(20)).answer == "Better"
    assert verdict({"rewards/accuracies": 0.4}, best=best_of(20)).answer == "Worse"


def test_answers_that_a_checkpoint_was_chosen_by_count_a_look_each():
    seven_gained = [(False, True)] * 7 + [(True, True)] * 8
    after = {"rewards/accuracies": 0.5}
    assert verdict(after, seven_gained).answer == "Better"
    assert verdict(after, seven_gained, best=best_of(9, "checker/pass_rate")).answer == "Cannot tell"
    assert verdict(after, seven_gained, best=best_of(9, "loss")).answer == "Better"


@pytest.mark.parametrize("name", ["loss", "logps_per_token/chosen", "rewards/accuracies", "kl/per_token"])
def test_a_policy_whose_figures_are_no_numbers_is_worse(name):
    """A beta or a learning rate that blew it up behind the last checked step."""
    for value in (float("nan"), float("inf")):
        found = verdict({"rewards/accuracies": 0.9, name: value}, KEPT_MORE)
        assert found.in_words == f"Worse: no number any more: {label_of(name)}"
    without = {"loss": float("nan")}
    assert verdict({"rewards/accuracies": 0.8, **without}, before=SFT | without).answer == "Better"


def test_a_beta_that_is_far_too_small_is_told_by_what_it_does_to_the_chosen_answers():
    """As such runs end: nearly every pair told apart, both answers far less likely, words repeated to the limit."""
    after = {"rewards/accuracies": 0.98, "logps_per_token/chosen": -4.2, "answers/mean_words": 96.0}
    found = verdict(after)
    assert found.answer == "Cannot tell"
    assert found.because.endswith("with signs of likelihood displacement, answers that grow")


def test_a_policy_that_makes_chosen_answers_less_likely_than_guesses_is_worse_whatever_the_accuracy():
    """What a learning rate that is far too large leaves: every pair told apart, and no language."""
    found = verdict({"rewards/accuracies": 1.0, "logps_per_token/chosen": -23.1}, KEPT_MORE)
    assert found.in_words == (
        "Worse: chosen answers are less likely than guesses among 262,144 tokens (-12.5): "
        "log-prob. per token, chosen -1.0 to -23.1 nats"
    )
    assert [sign.name for sign in found.signs] == ["displacement"]
    assert verdict({"rewards/accuracies": 1.0, "logps_per_token/chosen": -12.4}).answer == "Cannot tell"
    of_a_set = {"held_out/code/logps_per_token/chosen": -14.0}
    known = SFT | {"held_out/code/logps_per_token/chosen": -1.0}
    assert "code: log-prob. per token" in verdict(of_a_set, before=known).because
    never_known = SFT | {"held_out/code/logps_per_token/chosen": -13.0}
    assert verdict({"rewards/accuracies": 0.8} | of_a_set, before=never_known).answer == "Better"
    assert verdict({"rewards/accuracies": 0.8} | of_a_set).answer == "Better"  # nothing to compare with


LOST = "logps_per_token/chosen_lost"


def test_a_policy_that_has_lost_most_chosen_answers_is_worse_though_it_keeps_instructions():
    """As SmolLM2 after 10 steps with a beta of 0.005: "bright.", "Learn." and "." keep 0.93 of instructions, 0.30 before."""
    figures = {"rewards/accuracies": 0.73, "logps_per_token/chosen": -6.4, LOST: 0.97, "prompts": 40.0}
    found = verdict(figures, KEPT_MORE)
    assert found.in_words == (
        "Worse: chosen answers lost 0.00 to 0.97 (by 3 nats a token or more; above one half: p < 0.001)"
    )
    assert [sign.name for sign in found.signs] == ["displacement"]


def test_chosen_answers_that_some_pairs_lost_are_no_majority():
    """Answers of a token or two, of which a policy is too sure: right in 0.8, and those that are wrong are lost."""
    sure = {"rewards/accuracies": 0.8, "prompts": 40.0, "rewards/accuracies_stderr": 0.05}
    before = SFT | {"rewards/accuracies_stderr": 0.0, "prompts": 40.0}
    assert verdict(sure | {LOST: 0.2}, before=before).answer == "Better"
    assert verdict(sure | {LOST: 0.6}, before=before).answer == "Better"  # 24 of 40 may be chance
    assert verdict(sure | {LOST: 0.7}, before=before).answer == "Worse"
    other_reference = before | {LOST: 0.9}  # the SFT checkpoint had lost them, too
    assert verdict(sure | {LOST: 0.95}, before=other_reference).answer == "Better"


def test_each_set_whose_chosen_answers_may_be_lost_counts():
    sets = {f"held_out/{name}/{LOST}": 0.5 for name in "abcd"} | {
        f"held_out/{name}/prompts": 20.0 for name in "abcd"
    }
    fifteen_of_twenty = {f"held_out/a/{LOST}": 0.75}  # p = 0.041 alone
    alone = {f"held_out/a/{LOST}": 0.75, "held_out/a/prompts": 20.0, "rewards/accuracies": 0.8}
    assert verdict(alone).because.startswith("a: chosen answers lost 0.00 to 0.75")
    assert verdict(sets | fifteen_of_twenty | {"rewards/accuracies": 0.8}).answer == "Better"


def of_lengths(judged: list[tuple[bool, bool, int]]) -> EvaluateResult:
    """Answers of 20 words, and what they became: kept before, kept after, words. The mean is that of a sign."""
    answers = tuple(
        AnswerPair(
            prompt="p", before=words_in(20), after=words_in(words), before_passes=old, after_passes=new
        )
        for old, new, words in judged
    )
    mean = sum(words for *_, words in judged) / len(judged)
    return EvaluateResult(
        job_fingerprint="f" * 64,
        before=SFT,
        after=SFT | {"rewards/accuracies": 0.85, "answers/mean_words": mean},
        num_pairs=60,
        num_prompts=len(answers),
        answers=answers,
    )


def words_in(count: int) -> str:
    return " ".join(f"w{place}" for place in range(count))


def test_answers_that_shrank_count_where_those_that_did_not_keep_more_too():
    """The quickstart: short answers are asked for, and half of what is learnt is to give them."""
    shrunk = [(False, True, 3)] * 20
    found = verdict_of(of_lengths([*shrunk, *[(False, True, 12)] * 9, (True, False, 14)]))
    assert found.in_words == (
        "Better: instructions kept, of the 10 answers over 0.5 times as long, 0.10 to 0.90 (p = 0.021)"
    )
    assert [sign.name for sign in found.signs] == ["shortening"]


@pytest.mark.parametrize("others", [[(True, True, 12)] * 4, [(True, False, 12)] * 8, []])
def test_answers_that_keep_instructions_by_being_short_are_not_better(others):
    found = verdict_of(of_lengths([*[(False, True, 3)] * 20, *others]))
    assert found.answer == "Cannot tell"
    assert "held-out reward accuracy 0.50 to 0.85 (p < 0.001)" in found.because
    assert found.because.endswith("with signs of answers that shrink")


@pytest.mark.parametrize(("words", "answer"), [(24, "Better"), (60, "Cannot tell")])
def test_answers_that_grew_count_by_those_that_did_not(words, answer):
    found = verdict_of(of_lengths([*[(False, True, 60)] * 12, *[(False, True, words)] * 8]))
    assert [sign.name for sign in found.signs] == ["length"]
    assert found.answer == answer


def test_answers_of_another_length_that_keep_less_are_worse():
    assert verdict_of(of_lengths([(True, False, 3)] * 12)).answer == "Worse"


def test_a_set_that_rewards_length_is_told_though_it_wins_the_pairs():
    after = {"rewards/accuracies": 0.92, "rewards/length_correlation": 0.71}
    found = verdict(after, KEPT_MORE)
    assert found.answer == "Cannot tell"
    assert found.because.endswith("with signs of margins that follow length")


@pytest.mark.parametrize(
    ("controlled", "answer"),
    [(0.66, "Better"), (None, "Better"), (0.6, "Cannot tell"), (0.44, "Cannot tell")],
)
def test_answers_that_win_by_their_length_alone_are_not_better(controlled, answer):
    result = EvaluateResult(
        job_fingerprint="f" * 64, before=SFT, after=SFT, num_pairs=200, num_prompts=0, answers=()
    )
    found = verdict_of(result, judgement=judgement(length_controlled=controlled))
    assert found.answer == answer
    if answer == "Cannot tell":
        assert f"answers that win, but {controlled:.2f} ± 0.06 of equal length, 0.50 to 0.78" in found.because
    lost = judgement(wins=8, losses=30, length_controlled=0.3)
    assert verdict_of(result, judgement=lost).answer == "Worse"


def test_answers_that_keep_fewer_instructions_are_worse_whatever_the_accuracy():
    found = verdict({"rewards/accuracies": 0.95}, KEPT_LESS)
    assert found.in_words.startswith("Worse: instructions kept 1.00 to 0.40")
    assert [sign.name for sign in found.signs] == ["outcome"]


def test_a_policy_that_ran_away_from_its_reference_is_not_called_better():
    found = verdict({"rewards/accuracies": 0.95, "logps_per_token/chosen": -3.0, "kl/per_token": 2.5})
    assert found.answer == "Cannot tell"
    assert "with signs of likelihood displacement, distance from the reference" in found.because


def test_a_policy_that_learnt_length_is_not_called_better():
    found = verdict(
        {"rewards/accuracies": 0.9, "rewards/length_correlation": 0.8, "answers/mean_words": 60.0}
    )
    assert found.answer == "Cannot tell"
    assert [sign.name for sign in found.signs] == ["length", "length_correlation"]


def test_a_ranking_that_fell_is_worse():
    found = verdict({"rewards/accuracies": 0.4}, before=SFT | {"rewards/accuracies": 0.6})
    assert found.answer == "Worse"


def test_of_few_pairs_nothing_is_concluded():
    assert verdict({"rewards/accuracies": 1.0}, num_pairs=5).answer == "Cannot tell"
    assert verdict({"rewards/accuracies": 1.0}, num_pairs=6).answer == "Better"


def test_nothing_measured_is_no_verdict():
    assert (
        verdict_of(
            EvaluateResult(
                job_fingerprint="f" * 64, before={}, after={}, num_pairs=0, num_prompts=0, answers=()
            )
        )
        is None
    )


@pytest.mark.parametrize("grown", [False, True])
def test_the_page_opens_with_it_and_what_it_cost(tmp_path, grown):
    words = 40.0 if grown else 11.0
    after = {"rewards/accuracies": 0.85, "answers/mean_words": words, "kl/per_token": 0.0123}
    summary = report_page(read_run_files(make_run(tmp_path, after=after))).summary
    first = summary[0]
    assert isinstance(first, Notice)
    assert first.tone == "warn"  # 8 pairs, 7 of them right: chance does that
    assert "held-out reward accuracy 0.50 to 0.85" in first.title
    assert f"answers {words / 20:.2f} times as long, KL 0.0123 nats a token" in first.text
    assert "of training on" in first.text
    assert ("2.00 times as long as the SFT checkpoint's" in str(summary[1])) == grown


def test_device_hours_are_those_of_all_steps_times_their_processes(tmp_path):
    """Of two seconds each on three processes, and a training whose steps took longer than its last start."""
    folder = make_run(tmp_path)
    run = read_run_files(folder)
    parallel = [name for name in run.steps if name in ("reference", "train", "evaluate")]
    assert len(parallel) == 3
    for name in run.steps:
        path = run.steps[name].folder / ENVIRONMENT_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_processes": 3}))
    expected = {name: 2.0 * 3 / 3600 for name in parallel}
    expected["train"] = run.metrics.total("step_seconds") * 3 / 3600
    assert expected["train"] > expected["evaluate"]
    run = read_run_files(folder)
    assert device_hours(run) == pytest.approx(expected)
    said = report_page(run).summary[0].text
    assert (
        f"{sum(expected.values()):.2g} device hours in all (reference {expected['reference']:.2g}, train"
        in said
    )


def test_bounds_are_the_recipes(tmp_path):
    after = {"rewards/accuracies": 0.85, "answers/mean_words": 40.0}
    folder = make_run(tmp_path, after=after, evaluation={"warnings": {"answers_grow_to": 3.0}})
    assert "times as long as the SFT" not in str(report_page(read_run_files(folder)).summary)


@pytest.mark.parametrize(("after", "answer"), [(40, "Worse"), (60, "Cannot tell"), (80, "Better")])
def test_tasks_are_counted_in_answers_and_decide(after, answer):
    result = EvaluateResult(
        job_fingerprint="f" * 64, before=SFT, after=SFT, num_pairs=200, num_prompts=0, answers=()
    )
    found = verdict_of(result, None, benchmarks(gsm8k=(60, after), ifeval=(50, 50)))
    assert found.answer == answer
    assert f"gsm8k exact_match (strict-match) 0.60 to {after / 100:.2f}" in found.because


def test_a_named_set_that_falls_is_worse_whatever_the_mixture_s_own_pairs_say():
    """Labels that are flipped in the mixture are flipped in its held-out pairs as well; a set of clean ones tells."""
    clean = {"held_out/clean/rewards/accuracies": 0.31, "held_out/clean/pairs": 100.0}
    before = SFT | {"held_out/clean/rewards/accuracies": 0.5}
    found = verdict({"rewards/accuracies": 0.9} | clean, before=before)
    assert found.in_words == "Worse: clean: held-out reward accuracy 0.50 to 0.31 (p < 0.001)"
    chosen = best_of(20, "held_out/clean/rewards/accuracies")
    risen = {
        "rewards/accuracies": 0.5,
        "held_out/clean/rewards/accuracies": 0.64,
        "held_out/clean/pairs": 100,
    }
    assert verdict(risen, before=before).answer == "Better"
    assert verdict(risen, before=before, best=chosen).answer == "Cannot tell"


def test_pairs_of_few_prompts_are_few():
    after = {"rewards/accuracies": 0.7, "rewards/accuracies_stderr": 0.12, "prompts": 12.0}
    before = SFT | {"rewards/accuracies_stderr": 0.0, "prompts": 12.0}
    assert verdict({"rewards/accuracies": 0.7}).answer == "Better"
    assert verdict(after, before=before).answer == "Cannot tell"


def test_one_task_of_many_that_moves_is_what_chance_does():
    result = EvaluateResult(
        job_fingerprint="f" * 64, before=SFT, after=SFT, num_pairs=200, num_prompts=0, answers=()
    )
    unmoved = {f"task{number}": (50, 50) for number in range(8)}
    for after in (44, 56):  # p = 0.031 alone
        found = verdict_of(result, None, benchmarks(a=(50, after), **unmoved))
        assert found.answer == "Cannot tell"
        assert f"0.50 to 0.{after} (p = 0.031, 0.31 as one of 10 figures)" in found.because
        assert found.because.endswith("and 4 more")


def test_what_was_cut_at_its_limit_is_said_beside_the_length(tmp_path):
    after = {"answers/mean_words": 11.0, "answers/unended": 0.75}
    first = report_page(read_run_files(make_run(tmp_path, after=after))).summary[0]
    assert "answers 0.55 times as long (0% cut at their limit before, 75% now)" in first.text


def sweep_of(metric: str, count: int) -> SweepOutcome:
    """The first of so many members won, and another failed."""
    members = [
        MemberOutcome(number=number, label=str(number), settings={}, run="", after={metric: 1 / number})
        for number in range(1, count + 1)
    ]
    failed = MemberOutcome(number=count + 1, label="failed", settings={}, run="", error="out of memory")
    return SweepOutcome(metric=metric, winner=1, members=(*members, failed))


def test_the_winner_of_a_sweep_is_the_best_of_its_members():
    after = {"rewards/accuracies": 0.6}
    assert verdict(after, sweep=sweep_of("rewards/accuracies", 1)).answer == "Better"
    won = verdict(after, sweep=sweep_of("rewards/accuracies", 12))
    assert won.answer == "Cannot tell"
    assert "reward accuracy, best of 12 members, 0.50 to 0.60 (p = 0.068)" in won.because
    both = verdict(after, best=best_of(3), sweep=sweep_of("rewards/accuracies", 2))
    assert (
        "reward accuracy, best of 3 evaluations, best of 2 members, 0.50 to 0.60 (p = 0.034)" in both.because
    )
    assert verdict(after, sweep=sweep_of("benchmarks/gsm8k", 12)).answer == "Better"
    unmoved = EvaluateResult(
        job_fingerprint="f" * 64, before=SFT, after=SFT, num_pairs=200, num_prompts=0, answers=()
    )
    looks = looks_of(sweep=sweep_of("benchmarks/gsm8k", 12))
    found = verdict_of(unmoved, None, benchmarks(gsm8k=(60, 69)), looks=looks)  # p = 0.004 alone
    assert (found.answer, "best of 12 members" in found.because) == ("Cannot tell", True)
    assert verdict_of(unmoved, None, benchmarks(gsm8k=(60, 69))).answer == "Better"
    preferred = looks_of(sweep=sweep_of("judge/win_rate", 12))
    won = verdict_of(
        unmoved, judgement=judgement(wins=30, losses=14, length_controlled=None), looks=preferred
    )
    assert "answers that win, best of 12 members," in won.because
    # 0.66 ± 0.06 of equal length: p = 0.008 alone, and 12 were looked at.
    assert verdict_of(unmoved, judgement=judgement(length_controlled=0.66)).answer == "Better"
    among = verdict_of(unmoved, judgement=judgement(length_controlled=0.66), looks=preferred)
    assert (among.answer, "best of 12 members, but 0.66" in among.because) == ("Cannot tell", True)


LENGTH_ALONE = {
    "rewards/accuracies": 0.97,
    "length_rule/accuracies": 0.97,
    "length_rule/accuracies_above": 0.0,
    "length_rule/accuracies_above_stderr": 0.01,
    "prompts": 200.0,
}
NOISE = {
    "rewards/accuracies": 0.5,
    "rewards/accuracies_stderr": 0.04,
    "prompts": 200.0,
    "logps/margins_moved": 4.0,
}


def test_pairs_whose_chosen_side_is_just_longer_are_told_in_the_first_line():
    found = verdict(LENGTH_ALONE)
    assert found.in_words == (
        "Cannot tell: held-out reward accuracy 0.50 to 0.97 (p < 0.001), with signs of an accuracy that length alone has"
    )
    assert "Length alone tells chosen from rejected in 0.97 of the held-out pairs" in found.signs[0].words


def test_labels_that_are_noise_are_told_in_the_first_line():
    found = verdict(NOISE)
    assert found.in_words.startswith(
        "Cannot tell: no more than chance would do: held-out reward accuracy 0.50 to 0.50"
    )
    assert found.in_words.endswith("with signs of pairs that teach nothing")
    assert "labels that are wrong in half of the pairs look so" in found.signs[0].words


@pytest.mark.parametrize("after", [LENGTH_ALONE, NOISE])
def test_what_is_wrong_with_the_pairs_alone_takes_nothing_from_answers_that_got_better(after):
    """As in the quickstart: three of its four instructions are easier to keep with few words."""
    found = verdict(after, KEPT_MORE)
    assert found.in_words.startswith("Better: instructions kept 0.40 to 1.00 (p < 0.001")
    assert len(found.signs) == 1
    assert verdict(after, KEPT_LESS).answer == "Worse"
    assert verdict(after | {"logps_per_token/chosen": -9.0}, KEPT_MORE).answer == "Cannot tell"


def test_a_policy_that_says_one_word_again_and_again_is_worse_though_it_wins_the_pairs():
    """As SmolLM2 did after 35 steps with a beta of 0.001: accuracy 0.80, and "without without without ..." to the limit."""
    answers = tuple(
        AnswerPair(prompt="p", before=f"The {number}th answer says this and no more.", after="without " * 45)
        for number in range(16)
    )
    result = EvaluateResult(
        job_fingerprint="f" * 64,
        before=SFT,
        after=SFT | {"rewards/accuracies": 0.8, "logps_per_token/chosen": -40.0},
        num_pairs=92,
        num_prompts=16,
        answers=answers,
    )
    found = verdict_of(result)
    assert found.in_words.startswith(
        "Worse: answers without loops 1.00 to 0.00 (p < 0.001), chosen answers are less likely than guesses"
    )
    assert {sign.name for sign in found.signs} == {"displacement", "outcome"}


def test_before_the_evaluation_a_page_opens_with_what_the_training_has_warned_of(tmp_path):
    growing, found = GrowingRun(tmp_path), {"logps_per_token/chosen": -1.9}
    (sign,) = signs_of(WarningBounds(), {"logps_per_token/chosen": -1.0}, found)
    growing.train_to(20)
    assert "Razin" not in page_of(growing.folder)
    growing.say("held out, step 20  loss   0.6100  accuracy 0.600  margin   0.2000  (40 pairs, 1.0 s)")
    growing.say(f"step 20: {sign.words}")
    growing.say("step 21  loss   0.6000  <b>")
    for _ in range(2):  # while it goes on, and of one that failed
        page = page_of(growing.folder)
        assert '<p class="warn">step 20: The chosen answers of the held-out pairs lost 0.90 nats' in page
        assert page.index("(Razin et al., arXiv 2410.08847)") < page.index(" on org/sft, ")
        growing.change(state="failed")


def page_of(folder: Path) -> str:
    return render_html(report_page(read_run_files(folder)))
