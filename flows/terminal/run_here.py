"""A run at a terminal: the flow with its progress and questions, and what it came to."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpo_core.contract.errors import PairlineError
from dpo_core.contract.importing import importing
from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.results import LARGEST_RESULT_BYTES, RESULT_FILE
from dpo_core.contract.visible import visible
from flows.settings.stage_config import StageConfig
from tasks.text.terminal import say, show_table, tell

if TYPE_CHECKING:  # it imports Prefect
    from flows.audience import Audience

INTERNAL_ERROR_FILE = "internal-error.txt"


def run_stage(config: StageConfig, console: Console, wait_for_server: Callable[[], None]) -> None:
    """Run the flow with its progress on ``console``; the last line is the path of the hand-off."""
    # Prefect reads its settings when it is imported, so nothing above imports it.
    with importing():
        from flows.audience import followed
        from flows.dpo_stage import run_stage as body
        from flows.terminal.release import show_gate

    wait_for_server()
    show_end(
        run_flow(lambda audience: followed("dpo-stage", body, audience)(config), console, show_gate), console
    )


def show_end(folder: Path, console: Console) -> None:
    """Show what a complete run came to; the last line is the path of the hand-off."""
    from flows.terminal.release import show_gate
    from tasks.report.page import REPORT_FILE
    from tasks.run.folder import read_run

    outputs = read_run(folder).outputs
    show_evaluation(console, Path(outputs["evaluate"]))
    show_judgement(console, folder)
    show_scores(console, folder)
    show_verdict(console, folder)
    show_gate(console, folder)
    tell(console, f"report: {folder / REPORT_FILE}")
    tell(console, f"run: {folder}")
    say(f"handoff: {outputs['handoff']}")


def run_flow(
    flow: "Callable[[Audience], object]",
    console: Console,
    show_failed: Callable[[Console, Path | None], None],
) -> Path:
    """Run ``flow`` with its steps, progress, retries and questions on the terminal. -> the run's folder

    ``show_failed`` shows what a run that ended in an error left in its folder, if it got one.
    """
    from flows.audience import Audience
    from flows.terminal.release import ask_here
    from flows.terminal.run_display import ClusterNotices, TaskNotices, run_display

    display = run_display(console)
    try:
        with TaskNotices(console).listening(), display:
            asks, queue = ask_here(console, display.held), ClusterNotices(console)
            flow(Audience(display.task, display.progress, asks, queue))
    except PairlineError as error:
        show_failed(console, display.folder)
        _tell_where(error, display.folder)
        raise
    except Exception as error:
        raise _internal(error, display.folder) from error
    assert display.folder is not None
    return display.folder


def show_evaluation(console: Console, folder: Path) -> None:
    """Show the table before/after that ends a run."""
    from dpo_core.contract.metric_names import HEADLINE
    from tasks.report.tables import metrics_rows

    result = EvaluateResult.model_validate_json(read_regular(folder / RESULT_FILE, LARGEST_RESULT_BYTES))
    show_table(
        console,
        ("held out", "before", "after", "change"),
        [list(map(str, row.values())) for row in metrics_rows(result, HEADLINE)],
        f"{result.num_pairs} held-out pairs, {result.num_prompts} held-out prompts",
    )


def show_judgement(console: Console, folder: Path) -> None:
    """Show the table of what a judge found, where a run has one."""
    from tasks.report.judgement import prices_of
    from tasks.run.files import read_run_files
    from tasks.text.judgement import judgement_rows

    run = read_run_files(folder)
    if run.judgement:
        rows = [list(row.values()) for row in judgement_rows(run.judgement, *prices_of(run))]
        show_table(console, ("judge", "value"), rows, run.judgement.model)


def show_scores(console: Console, folder: Path) -> None:
    """Show the table of benchmarks, where a run has them."""
    from tasks.run.files import read_run_files
    from tasks.text.scores import TITLES, benchmark_rows

    if benchmarks := read_run_files(folder).benchmarks:
        rows = [list(row.values()) for row in benchmark_rows(benchmarks)]
        show_table(console, TITLES, rows, f"lm-evaluation-harness {benchmarks.lm_eval}")


def show_verdict(console: Console, folder: Path) -> None:
    """Tell whether the checkpoint is better, what warns of it, and whose step's weights were chosen."""
    from tasks.report.verdict import verdict_of_run
    from tasks.run.files import read_run_files

    run = read_run_files(folder)
    if run.trained and run.trained.best:
        tell(console, f"Exported are {run.trained.best.in_words}.")
    if verdict := verdict_of_run(run):
        for said in (verdict.in_words, *(sign.words for sign in verdict.signs)):
            tell(console, said)


def _tell_where(error: PairlineError, folder: Path | None) -> None:
    """Add the run's folder to an error that names no log of its own."""
    if folder is not None and not getattr(error, "__notes__", []):
        error.add_note(f"Log of the run: {folder / 'run.log'}")


def _internal(error: Exception, folder: Path | None) -> PairlineError:
    """A defect of ours: one sentence for the user, the traceback in a file."""
    path = (folder or Path.cwd()) / INTERNAL_ERROR_FILE
    path.write_text(visible("".join(traceback.format_exception(error))))
    return PairlineError(
        f"Internal error, a defect of Pairline and not of your input: {type(error).__name__}: "
        f"{str(error)[:300]}. Please report it with {path}."
    )
