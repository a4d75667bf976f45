"""The steps of a training in bounded room: totals of every step, rows that a curve can show."""

import json
import math
import os

import pytest

from dpo_core.contract.metrics_file import read_metrics
from tasks.report.curves import points_of
from tasks.run.step_metrics import MOST_NAMES, MOST_ROWS, FollowedSteps, StepMetrics, read_steps


def steps(count: int, first: int = 1) -> list[dict[str, float]]:
    return [
        {"step": step, "loss": math.sin(step), "pairs": 8, "tokens_per_second": 100.0, "step_seconds": step}
        for step in range(first, first + count)
    ]


def of(rows: list[dict[str, float]]) -> StepMetrics:
    metrics = StepMetrics()
    for row in rows:
        metrics.take(row)
    return metrics


def lines(rows: list[dict[str, float]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_few_steps_are_a_row_each(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(steps(5)))
    metrics = read_steps(path)
    assert [{**row, "tokens": 100.0 * row["step"]} for row in read_metrics(path)] == metrics.rows
    assert metrics.last == steps(5)[-1]


@pytest.mark.parametrize("count", [MOST_ROWS, MOST_ROWS + 1, 2 * MOST_ROWS + 1, 5 * MOST_ROWS + 3])
def test_of_many_steps_rows_are_means_and_totals_are_of_all(count):
    all_steps = steps(count)
    metrics = of(all_steps)
    assert MOST_ROWS / 2 < len(metrics.rows) <= MOST_ROWS
    assert metrics.count == count
    assert metrics.total("pairs") == 8 * count
    assert metrics.total("tokens") == 100 * count * (count + 1) / 2
    each = next(size for size in (1, 2, 4, 8) if -(-count // size) <= MOST_ROWS)
    second = all_steps[each : 2 * each]
    assert metrics.rows[1]["step"] == second[-1]["step"]
    assert metrics.rows[1]["loss"] == pytest.approx(sum(step["loss"] for step in second) / each)
    assert metrics.rows[-1]["step"] == count
    assert len(points_of(metrics.rows, "loss")) <= 240


def test_what_is_no_number_or_not_there_is_left_out_of_a_mean():
    rows = steps(MOST_ROWS + 1)
    rows[0]["loss"], rows[2]["loss"], rows[3]["loss"] = math.nan, math.inf, math.nan
    rows[1]["by_source/a/loss"] = 3.0
    first, second, *_ = of(rows).rows
    assert first["loss"] == math.sin(2)
    assert math.isnan(second["loss"])
    assert first["by_source/a/loss"] == 3.0
    assert "by_source/a/loss" not in second


def test_the_peak_is_the_most_of_any_step():
    rows = [{"step": step, "memory/peak_gib": peak} for step, peak in ((1, math.nan), (2, 3.0), (3, 2.0))]
    assert of(rows).peak_gib == 3.0
    assert math.isnan(of(steps(3)).peak_gib)


def test_a_line_is_taken_once_and_when_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    one, two, three = lines(steps(3)).splitlines(keepends=True)
    followed = FollowedSteps(path)
    followed.look()
    assert followed.metrics.count == 0
    for written, count in ((one, 1), (two[:9], 1), (two[9:], 2), (three, 3)):
        with path.open("a") as file:
            file.write(written)
        followed.look()
        assert followed.metrics.count == count
    assert followed.metrics.rows == of(steps(3)).rows


def test_a_training_that_goes_on_from_a_checkpoint_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(steps(9)))
    followed = FollowedSteps(path)
    followed.look()
    (tmp_path / "new").write_text(lines(steps(4)))
    os.replace(tmp_path / "new", path)
    followed.look()
    assert (followed.metrics.count, followed.metrics.last["step"]) == (4, 4)


def test_from_the_first_line_on_that_is_none_of_its_own_nothing_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{lines(steps(2))}\x00\x00\n{lines(steps(2, first=3))}")
    assert read_steps(path).count == 2


def test_a_file_that_names_ever_new_figures_takes_no_more_room():
    rows = [{"step": step, **{f"{step}/{place}": 1.0 for place in range(1000)}} for step in range(10)]
    assert len({name for row in of(rows).rows for name in row}) <= MOST_NAMES
