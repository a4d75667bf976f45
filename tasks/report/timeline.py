"""Where the time of a run went: its tasks on one axis, one below the other."""

from dataclasses import dataclass
from datetime import datetime

from tasks.report.svg import Chart, framed, text, ticks
from tasks.run.folder import RunRecord, TaskRecord

WIDTH, NAMES, ROW, TOP, BOTTOM = 900.0, 150.0, 26.0, 34.0, 34.0
COLOURS = {"completed": "blue", "failed": "bad", "cancelled": "warn", "running": "green"}


@dataclass(frozen=True, slots=True)
class TaskSpan:
    """A task on the axis, in seconds since the run began. ``end`` is None while it goes on or if it was killed."""

    name: str
    state: str
    start: float
    end: float | None
    is_reused: bool


def spans_of(record: RunRecord) -> list[TaskSpan]:
    """Return the tasks of a run. One is reused if all its jobs were found done in the store."""
    return [
        TaskSpan(
            task.name,
            task.state,
            _since(record.started, task.started),
            None if task.seconds is None else _since(record.started, task.started) + task.seconds,
            _is_reused(record, task),
        )
        for task in record.tasks
    ]


def _label(span: TaskSpan) -> str:
    return "did not end" if span.end is None else duration(span.end - span.start)


def _since(start: datetime, moment: datetime) -> float:
    return (moment - start).total_seconds()


def _is_reused(record: RunRecord, task: TaskRecord) -> bool:
    jobs = [
        job
        for job in record.jobs
        if job.started >= task.started
        and (task.seconds is None or _since(task.started, job.started) <= task.seconds)
    ]
    return bool(jobs) and all(job.reused for job in jobs)


def duration(seconds: float | None) -> str:
    """Return "1 h 02 min", "3 min 20 s", "4.2 s" """
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def time_chart(record: RunRecord) -> Chart | None:
    """Return a bar a task with its duration beside it."""
    spans = spans_of(record)
    if not spans:
        return None
    total = max([record.seconds or 0.0, 0.001, *(span.end or span.start for span in spans)])
    scale = (WIDTH - NAMES - 150) / total
    height = TOP + ROW * len(spans) + BOTTOM
    bottom = height - BOTTOM
    unit, seconds = ("h", 3600.0) if total > 3 * 3600 else ("min", 60.0) if total > 180 else ("s", 1.0)
    parts = [text(8, 18, "Time of each step", "title")]
    for tick in ticks(0, total / seconds, 6):
        if tick <= total / seconds:
            x = NAMES + tick * seconds * scale
            parts += [
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom}" class="grid"/>',
                text(x, bottom + 14, f"{tick:g}", "tick", "middle"),
            ]
    parts.append(
        text(NAMES + total * scale / 2, height - 6, f"since the run began ({unit})", "unit", "middle")
    )
    for row, span in enumerate(spans):
        y, end = TOP + row * ROW, total if span.end is None else span.end
        colour = "grey" if span.is_reused else COLOURS[span.state]
        label = _label(span)
        label += ", reused" if span.is_reused else "" if span.state == "completed" else f", {span.state}"
        width = max(2.0, (end - span.start) * scale)
        parts += [
            text(NAMES - 10, y + 13, span.name, "", "end"),
            f'<rect x="{NAMES + span.start * scale:.1f}" y="{y + 2:.1f}" width="{width:.1f}" height="15" rx="3" '
            f'class="fill {colour}"/>',
            text(NAMES + span.start * scale + width + 7, y + 13.5, label, "tick"),
        ]
    said = "; ".join(f"{span.name} {_label(span)}" for span in spans)
    return framed(
        "".join(parts), "Time of each step", f"Time of each step: {said}", WIDTH, height, is_wide=True
    )
