"""Commands that look at runs: `pairline status`, `watch`, `report`, `compare`. They read files only, and start nothing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpo_core.contract.errors import ConfigError
from flows.terminal.server_commands import Store
from tasks.text.terminal import say

Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's folder name in the store, its path, `last`, or `last~1`."),
]


def status(
    run_name: Annotated[
        str,
        typer.Argument(
            metavar="[RUN]",
            help="One run in detail: its folder's name, its path, `last`, or `last~1`. Empty: all runs, a line each.",
        ),
    ] = "",
    store: Store = Path(".pairline"),
    run_option: Annotated[str, typer.Option("--run", help="The same as RUN.", hidden=True)] = "",
) -> None:
    """List the runs of a store with their steps, durations and results, or tell of one. Reads files only."""
    from flows.terminal.status import show_run, show_runs

    if run_name and run_option not in ("", run_name):
        raise ConfigError(f"Two runs are named, {run_name!r} and {run_option!r}. Name one.")
    name = run_name or run_option
    show_run(store, name, Console()) if name else show_runs(store, Console())


def watch(
    run_name: Run = "last",
    store: Store = Path(".pairline"),
    every: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Draw it once and end, as where the output is no terminal.")
    ] = False,
) -> None:
    """Show a run while it goes on: steps, time left, curves, warnings, samples. Ctrl-C leaves; the run does not notice."""
    from flows.terminal.watch import watch_run
    from tasks.run.find import find_run

    watch_run(find_run(run_name, store), Console(), every, once)


def report(
    run_name: Run = "last",
    store: Store = Path(".pairline"),
    follow: Annotated[
        bool, typer.Option("--follow", help="Write it again and again until the run has ended.")
    ] = False,
) -> None:
    """Write a run's report.html again, also of a run that failed or was killed. Reads files only."""
    from flows.terminal.watch import follow_report
    from tasks.report.page import REPORT_FILE, write_report
    from tasks.run.find import find_run

    folder = find_run(run_name, store)
    write_report(folder)
    say(str(folder / REPORT_FILE))
    if follow:
        follow_report(folder)


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Two or more runs: folder names in the store, paths of run "
            "folders in any store, `last`, `last~1`."
        ),
    ],
    store: Store = Path(".pairline"),
    html: Annotated[Path | None, typer.Option(help="Also write a page with the curves.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write it as Markdown.")] = None,
) -> None:
    """Show what differs between runs: settings beside content, metrics, speed. Reads files only."""
    from flows.terminal.show_page import compare_runs

    compare_runs(runs, store, html, markdown, Console())
