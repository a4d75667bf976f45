"""Charts: round ticks, values where they belong, words for those who do not see them."""

import math
import os
from xml.etree import ElementTree

import pytest

from dpo_core.contract.metrics_file import read_metrics
from tasks.report.curves import MAX_POINTS, points_of, restarts, smoothed, training_charts
from tasks.report.svg import Labels, Line, Plane, histogram, line_chart, short, standalone, ticks

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (0.3, 17.0, [0, 5, 10, 15, 20]),
        (-0.2, 0.4, [-0.2, 0.0, 0.2, 0.4]),
        (5.0, 5.0, [4, 6]),
        (0.0, 0.0, [0.0, 0.5]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert ticks(low, high)[0] <= low
    assert ticks(low, high)[-1] >= high
    if low != high:
        assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "label"),
    [(5e-7, "5e-7"), (0.05, "0.05"), (20000, "20k"), (3e6, "3M"), (0, "0"), (-1.5, "-1.5")],
)
def test_labels_are_short(value, label):
    assert short(value) == label


def test_values_lie_where_the_axes_say():
    plane = Plane((0, 10), (0, 1))
    (left, bottom), (right, top) = plane.at(0, 0), plane.at(10, 1)
    assert left < right
    assert top < bottom  # SVG counts downwards
    assert plane.at(5, 0.5) == ((left + right) / 2, (top + bottom) / 2)


def test_a_chart_is_xml_and_survives_what_is_not_a_number():
    lines = [Line("a<b", "blue", [(1, 0.5), (2, math.nan), (3, math.inf), (4, 0.25)])]
    chart = line_chart(Labels("Loss & more", "step", "nats"), [*lines, Line("c", "orange", [(1, 1.0)])])
    tree = ElementTree.fromstring(chart.svg)
    assert "nan" not in chart.svg
    assert "inf" not in chart.svg
    assert tree.get("role") == "img"
    assert "a<b from 0.5 to 0.25" in tree.get("aria-label")
    assert "no values" in line_chart(Labels("Loss", "step", ""), [Line("", "blue", [(1, math.nan)])]).alt


def test_a_picture_by_itself_brings_its_colours():
    import base64

    address = standalone(line_chart(Labels("Loss", "step", ""), [Line("", "blue", [(1, 1.0), (2, 0.5)])]))
    svg = base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")).decode()
    ElementTree.fromstring(svg)
    assert "--blue:#0067a5" in svg


def test_bars_are_as_high_as_their_counts():
    chart = histogram(Labels("Length", "tokens", "pairs"), 10, [5, 0, 10], "blue")
    bars = [bar for bar in ElementTree.fromstring(chart.svg).iter(f"{SVG}rect")]
    assert [bar.find(f"{SVG}title").text for bar in bars] == ["0 to 9: 5", "20 to 29: 10"]
    heights = [float(bar.get("height")) for bar in bars]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)


def test_long_runs_are_thinned_by_means_and_short_ones_are_not():
    metrics = [{"step": step, "loss": float(step % 2)} for step in range(1, 10_001)]
    thinned = points_of(metrics, "loss")
    assert len(thinned) <= MAX_POINTS
    assert thinned[-1][0] == 10_000
    assert all(y == pytest.approx(0.5, abs=0.02) for _, y in thinned)
    assert points_of(metrics[:3], "loss") == [(1, 1.0), (2, 0.0), (3, 1.0)]


def test_the_running_mean_starts_at_the_first_value_and_follows():
    assert smoothed([(1, 4.0), (2, 4.0)]) == [(1, 4.0), (2, 4.0)]
    mean = smoothed([(step, float(step >= 50)) for step in range(100)])
    assert mean[49][1] == 0
    assert 0.9 < mean[-1][1] < 1


def test_a_cut_off_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "checks/a": 1}\n{"step": 2}\n{"step": 3, "checks/a": 1}\n{"step": 4, "lo')
    metrics = read_metrics(path)
    assert [step["step"] for step in metrics] == [1, 2, 3]
    assert restarts(metrics) == [(3, "resumed")]
    assert read_metrics(tmp_path / "absent") == []


@pytest.mark.parametrize(
    "line",
    [
        '{"step": ' + "[" * 100_000,
        "[1]",
        "7",
        '{"loss": 1}',
        '{"step": "</svg>"}',
        '{"step": ' + "9" * 4000 + "}",
    ],
)
def test_what_is_no_step_is_not_read_nor_what_follows(tmp_path, line):
    """A step of dpo_core writes the file, and may be made to write anything."""
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "pairs": 0, "tokens_per_second": 1, "step_seconds": 1, "loss": "<b>"}'
    path.write_text("\n".join([good, line, '{"step": 2}']))
    assert [step["step"] for step in read_metrics(path)] == [1]
    assert len(training_charts(read_metrics(path))) == 9
    path.unlink()
    path.symlink_to("/dev/zero")
    assert read_metrics(path) == []
    path.unlink()
    os.mkfifo(path)
    assert read_metrics(path) == []


def test_held_out_values_are_drawn_beside_those_of_training():
    metrics = [{"step": step, "loss": 0.7 - step / 100, "rewards/margins": 0.1} for step in range(1, 5)]
    evaluations = [{"step": step, "loss": 0.9 - step / 100} for step in (2, 4)]
    loss, accuracy, *_ = training_charts(metrics, evaluations)
    assert "training from 0.69 to 0.66" in loss.alt
    assert "held out from 0.88 to 0.86" in loss.alt
    assert "held out" not in training_charts(metrics)[0].alt
    assert "no values" in accuracy.alt
    assert len(training_charts(metrics, evaluations)) == 9


def test_rewards_and_log_probabilities_of_held_out_pairs_have_charts_of_their_own():
    names = ("rewards/chosen", "rewards/rejected", "logps_per_token/chosen", "logps_per_token/rejected")
    metrics = [{"step": step} | dict.fromkeys(names, -float(step)) for step in range(1, 5)]
    evaluations = [{"step": step} | dict.fromkeys(names, -0.5 * step) for step in (2, 4)]
    *of_training, rewards, logps = training_charts(metrics, evaluations)
    assert len(of_training) == len(training_charts(metrics)) == 9
    assert (rewards.title, logps.title) == ("Rewards, held out", "Log-probability per token, held out")
    for trained, held_out in zip(of_training[3:5], (rewards, logps), strict=True):
        for side in ("chosen", "rejected"):
            assert f"{side} from -1 to -4" in trained.alt
            assert f"{side} from -1 to -2" in held_out.alt


def test_what_was_counted_in_answers_while_training_has_charts_of_its_own():
    metrics = [{"step": step, "loss": 0.7} for step in range(1, 9)]
    answers = ("answers/mean_words", "checker/pass_rate", "kl/per_token")
    evaluations = [{"step": 0, "answers/mean_words": 20.0, "checker/pass_rate": 0.75}]
    for step in (2, 4, 6, 8):
        of_answers = zip(answers, (20.0 + step, 0.75 - step / 16, step / 10), strict=True)
        evaluations.append({"step": step, "loss": 0.6} | (dict(of_answers) if step % 4 == 0 else {}))
        evaluations[-1]["held_out/safety/checker/pass_rate"] = 0.5
    *pairs, words, kept, kl = training_charts(metrics, evaluations)
    assert len(pairs) == len(training_charts(metrics, [{"step": 2, "loss": 0.6}])) == 9
    assert [one.title for one in (words, kept, kl)] == [
        "Words an answer",
        "Instructions kept",
        "KL from the reference",
    ]
    assert "held out from 20 to 28" in words.alt
    assert "held out from 0.75 to 0.25" in kept.alt
    assert "safety from 0.5 to 0.5" in kept.alt
    assert "held out from 0.4 to 0.8" in kl.alt
    assert words.svg.count("<circle") == 3  # a point for each evaluation that asked prompts
    assert "nan" not in "".join(one.svg for one in (words, kept, kl))


def test_of_many_named_sets_the_first_have_lines_and_how_many_there_are_is_said():
    sets = {f"held_out/s{number}/loss": 0.5 for number in range(5)}
    loss, accuracy, *_ = training_charts([{"step": 1, "loss": 0.7}], [{"step": 1, "loss": 0.6, **sets}])
    assert loss.title == "Loss, 3 of 5 sets"
    assert "s2 from" in loss.alt
    assert "s3" not in loss.alt
    assert accuracy.title == "Reward accuracy"
    three = dict(list(sets.items())[:3])
    assert training_charts([{"step": 1, "loss": 0.7}], [{"step": 1, **three}])[0].title == "Loss"


def by_source(step, **accuracies):
    metrics = {f"by_source/{name}/rewards/accuracies": value for name, value in accuracies.items()}
    return {
        "step": step,
        "loss": 0.5,
        **metrics,
        **{name.replace("accuracies", "margins"): 2.0 for name in metrics},
    }


def test_each_source_has_a_line_of_the_steps_that_had_a_pair_of_it():
    metrics = [
        by_source(1, **{"a<b.jsonl": 0.25}),
        by_source(2, other=1.0),
        by_source(3, **{"a<b.jsonl": 0.75}),
    ]
    *plain, accuracy, margin = training_charts(metrics)
    assert len(plain) == len(training_charts([{"step": 1, "loss": 0.5}])) == 9
    assert "Reward accuracy by source" in accuracy.alt
    assert "a<b.jsonl from 0.25 to 0.75" in accuracy.alt
    assert "other" in accuracy.alt
    assert "Reward margin by source" in margin.alt
    ElementTree.fromstring(accuracy.svg)
    assert "nan" not in accuracy.svg + margin.svg


def test_what_was_measured_of_each_source_s_held_out_pairs_has_a_line_too():
    one = {
        "by_source/a/rewards/accuracies": 0.5,
        "by_source/org/b/rewards/accuracies": 0.25,
        "by_source/a/loss": 0.7,
        "by_source/org/b/logps_per_token/chosen": -2.0,
    }
    two = {name: value - 0.1 for name, value in one.items()}
    measured = [{"step": 0, "answers/mean_words": 3.0}, {"step": 2, **one}, {"step": 4, **two}]
    *_, loss, accuracy, logps = training_charts([{"step": 1, "loss": 0.5}], measured)
    assert loss.title == "Loss by source, held out"
    assert "a from 0.7 to 0.6" in loss.alt
    assert "org/b" not in loss.alt
    assert accuracy.title == "Reward accuracy by source, held out"
    assert "org/b from 0.25 to 0.15" in accuracy.alt
    assert logps.title == "Log-probability of chosen by source, held out"
    assert "org/b from -2 to -2.1" in logps.alt
    many = {f"by_source/s{number}/loss": 0.5 for number in range(6)}
    assert training_charts([{"step": 1}], [{"step": 1, **many}])[-1].title.endswith(
        "held out, 5 of 6 sources"
    )


def test_of_many_sources_those_with_most_steps_are_shown_and_that_is_said():
    metrics = [by_source(step, **{f"s{i}": 0.5 for i in range(7 - step)}) for step in range(1, 5)]
    accuracy = training_charts(metrics)[-2]
    assert "by source, 5 of 6 sources" in accuracy.alt
    assert "s0" in accuracy.alt
    assert "s5" not in accuracy.alt
