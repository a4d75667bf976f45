"""What `pairline watch` draws of one look at a run: chain, progress, curves, warnings, samples. Reads nothing, waits for
nothing."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rich.cells import cell_len
from rich.console import Group, RenderableType

from dpo_core.contract.answers_file import side_by_side
from dpo_core.contract.jobs import AnswerPair
from dpo_core.contract.metric_names import MEANINGS
from dpo_core.contract.metrics_file import Metrics
from dpo_core.contract.visible import one_line
from tasks.report.character_plot import MARK, Parts, plotted
from tasks.report.curves import STEPS_TO_SMOOTH, points_of, smoothed
from tasks.report.page import BADGES, RESUME
from tasks.report.reproduce import commands
from tasks.report.samples import informative
from tasks.report.timeline import duration
from tasks.report.verdict import TONES, VerdictOfRun, verdict_of_run
from tasks.run.chain import TO_COME, chain_of
from tasks.run.files import RunFiles, failed_log
from tasks.run.live import LiveRun
from tasks.run.state import run_state
from tasks.text.terminal import beside, styled

STYLES = {"good": "green", "bad": "red", "warn": "yellow", "muted": "dim", "": ""}
SIGNS = {
    "completed": "✓",
    "running": "▶",
    "failed": "✗",
    "killed": "✗",
    "cancelled": "✗",
    "suspended": "‖",
    TO_COME: "·",
}
OF_LINKS = {"completed": "green", "running": "bold cyan", "suspended": "bold yellow", TO_COME: "dim"}
CURVES = ("loss", "rewards/accuracies", "rewards/margins", "logps_per_token/chosen")
TRAINING, HELD_OUT = "cyan", "bold yellow"
NARROWEST_CURVE, LOWEST_CURVE, USUAL_CURVE, HIGHEST_CURVE = 36, 3, 5, 10  # characters, lines
LINES_AROUND = 12  # header, chain, progress, warnings, the beginning of the samples
SECONDS_OF_SILENCE = 30.0
NUM_WARNINGS, NUM_SAMPLES, NUM_LOG_LINES = 3, 3, 8
LONGEST_SAMPLE = 240  # characters
WIDE = 90  # answers stand beside each other


def run_view(
    run: LiveRun, width: int, height: int | None = None, now: datetime | None = None
) -> RenderableType:
    """Return the picture. ``height``: lines that there are; None where more can follow below."""
    files, blocks = run.files, list[RenderableType]()
    blocks.append(styled(_header(files, now or datetime.now(UTC)), is_cut=True))
    blocks += [styled(line) for line in _chain(files, width)]
    blocks += [styled(line, is_cut=True) for line in _progress(run, width)]
    verdict = verdict_of_run(files)
    blocks += [styled(line) for line in _end(files, verdict)]
    shown = [sign.words for sign in verdict.signs] if verdict else []  # the run's log has them, too
    warned = [text for text in run.warnings if text not in shown]
    blocks += [styled([("! ", "bold yellow"), (one_line(text), "yellow")]) for text in warned[-NUM_WARNINGS:]]
    if files.metrics.count:
        about = "line: training" + (" (running mean)" if files.metrics.count >= STEPS_TO_SMOOTH else "")
        about += f"; {MARK}: held-out pairs" if files.evaluations else ""
        blocks += [styled([(about, "dim")]), _curves(files, width, height)]
    blocks += _samples(files, width)
    return Group(*blocks)


def _header(files: RunFiles, now: datetime) -> Parts:
    record, state = files.record, run_state(files.record)
    words, tone = BADGES[state]
    seconds = record.seconds if record.ended else (now - record.started).total_seconds()
    since = "" if state == "killed" else f"  {duration(seconds)}"
    return [(one_line(files.folder.name), "bold"), (f"  {words}", f"bold {STYLES[tone]}"), (since, "dim")]


def _chain(files: RunFiles, width: int) -> Iterator[Parts]:
    """The tasks with their states, as many on a line as there is room for."""
    line, used = Parts(), 0
    for link in chain_of(files.record, files.config):
        took = f" {duration(link.seconds)}" if link.seconds is not None and link.state != TO_COME else ""
        name, style = f"{SIGNS[link.state]} {one_line(link.name)}", OF_LINKS.get(link.state, "bold red")
        size = cell_len(name + took)
        if line and used + 2 + size > width:
            yield line
            line, used = Parts(), 0
        line += [("  ", "")] if line else []
        line += [(name, style), (took, "dim")]
        used += size + (2 if used else 0)
    if line:
        yield line


def _progress(run: LiveRun, width: int) -> Iterator[Parts]:
    """Where the step at work stands; what it logged last, where it has not said so."""
    if run_state(run.files.record) != "running":
        return
    event = run.event
    if event is None or not event.total:
        if run.last_line:
            yield [("log: ", "dim"), (one_line(run.last_line), "dim")]
        return
    phase = event.phase if event.phase not in ("", event.step) else ""
    where = (
        one_line(f"{event.step} {phase}".strip())
        + f"  {event.done:,}/{event.total:,} {one_line(event.unit)} "
    )
    rate = (
        f"{event.rate:,.3g}/s" if event.rate >= 1 else f"{1 / event.rate:,.3g} s each" if event.rate else ""
    )
    left = "" if run.seconds_left is None else f"{duration(run.seconds_left)} left"
    share = min(1.0, event.done / event.total)
    end = "  ".join(filter(None, (f" {share:4.0%}", rate, left)))
    room = max(0, min(40, width - cell_len(where) - cell_len(end)))
    full = round(room * share)
    yield [(where, "bold"), ("█" * full, "cyan"), ("░" * (room - full), "dim"), (end, "")]
    if run.seconds_ago > SECONDS_OF_SILENCE:
        yield [(f"  no word for {duration(run.seconds_ago)}: {one_line(run.last_line)}", "yellow")]


def _end(files: RunFiles, verdict: VerdictOfRun | None) -> Iterator[Parts]:
    """What came out, or why nothing did, and what a person can do."""
    record, state = files.record, run_state(files.record)
    if verdict:
        yield [(verdict.in_words, f"bold {STYLES[TONES[verdict.answer]]}")]
        yield from ([("! ", "bold yellow"), (sign.words, "yellow")] for sign in verdict.signs)
    asked = (
        state == "running"
        and bool(record.tasks)
        and record.tasks[-1].name == "approve"
        and not record.tasks[-1].seconds
    )
    if state == "suspended" or asked:
        command = f"pairline approve --run {files.folder.name}"
        yield [
            (f"A person is asked: `{one_line(command)}`, or `reject`, or on the run's page.", "bold yellow")
        ]
    if record.error:
        yield [(record.error, "red")]
    if state in ("failed", "killed", "cancelled"):
        path, lines = failed_log(files)
        yield [(f"Last lines of {one_line(str(path))}:", "dim")]
        yield from ([(f"  {one_line(line)}", "")] for line in lines[-NUM_LOG_LINES:])
        yield [(RESUME, "")]
        yield [(f"  {one_line(commands(files).splitlines()[-1])}", "bold")]
    if "handoff" in record.outputs:
        yield [(one_line(f"handoff: {record.outputs['handoff']}"), "")]


def _curves(files: RunFiles, width: int, height: int | None) -> RenderableType:
    """Loss, accuracy, margin and likelihood, the held-out pairs' own as marks over them."""
    columns = max(1, min(len(CURVES), width // NARROWEST_CURVE))
    shown = CURVES if len(CURVES) % columns == 0 else CURVES[:columns]
    rows = -(-len(shown) // columns)
    lines = USUAL_CURVE
    if height is not None:
        lines = max(LOWEST_CURVE, min(HIGHEST_CURVE, (height - LINES_AROUND) // rows - 1))
    across = width // columns - 2
    steps = files.metrics.rows
    drawn = [_curve(name, steps, files.evaluations, (across, lines)) for name in shown]
    return beside(drawn, columns)


def _curve(name: str, metrics: Metrics, evaluations: Metrics, size: tuple[int, int]) -> RenderableType:
    points, held_out = points_of(metrics, name), points_of(evaluations, name)
    line = smoothed(points) if len(points) >= STEPS_TO_SMOOTH else points
    label = MEANINGS[name].label
    title: Parts = [(label, "bold"), (f" {_ends(line)}", TRAINING)]
    if held_out:
        title.append((f"  {MARK} {_ends(held_out[-1:])}", HELD_OUT))
    rows = plotted(line, held_out, size, (TRAINING, HELD_OUT))
    parts = [part for row in rows for part in (("\n", ""), *row)]
    return styled([*title, *parts], is_cut=True)


def _ends(points: Sequence[tuple[float, float]]) -> str:
    """ "0.69 → 0.39", or one value, or nothing."""
    values = [y for _, y in points if y == y]
    if not values:
        return ""
    return f"{values[0]:.3g}" + (f" → {values[-1]:.3g}" if len(values) > 1 else "")


def _samples(files: RunFiles, width: int) -> Iterator[RenderableType]:
    """The answers that tell most: of the evaluation, before it of the newest step whose answers training has kept."""
    answers: Sequence[AnswerPair] = files.evaluation.answers if files.evaluation else ()
    later = "after"
    if not files.evaluation and (found := side_by_side(files.kept_answers)):
        step, answers = found
        later = f"step {step:,}"
    for answer in informative(answers, NUM_SAMPLES, files.preferences):
        yield styled([])
        yield styled([("prompt  ", "dim"), (_cut(answer.prompt), "bold")])
        both = [
            styled([(f"{who}{mark}  ", style or "dim"), (_cut(text), "")])
            for who, text, passes in (
                ("before", answer.before, answer.before_passes),
                (later, answer.after, answer.after_passes),
            )
            for mark, style in [VERDICTS[passes]]
        ]
        yield beside(both, 2) if width >= WIDE else Group(*both)


VERDICTS: dict[bool | None, tuple[str, str]] = {True: (" ✓", "green"), False: (" ✗", "red"), None: ("", "")}


def _cut(text: str) -> str:
    shown = one_line(text)
    return shown if len(shown) <= LONGEST_SAMPLE else shown[:LONGEST_SAMPLE] + " ..."
