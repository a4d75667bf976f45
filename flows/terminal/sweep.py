"""``pairline sweep``: a sweep with its table on the terminal."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.results import LARGEST_RESULT_BYTES
from flows.accelerator import limit_of_members, make_own_limit
from flows.audience import Audience, followed
from flows.dpo_sweep import run_sweep
from flows.serve.local_prefect import server_outlives_the_run
from flows.settings.sweep_config import SweepConfig
from tasks.launch.launcher import kind_of
from tasks.report.page import REPORT_FILE
from tasks.report.sweep_section import lead_in_words, sweep_rows
from tasks.run.folder import read_run
from tasks.sweep.outcomes import SWEEP_FILE, SweepOutcome
from tasks.sweep.picture import PICTURE_FILE
from tasks.text.terminal import say, show_table, tell

ShowFailed = Callable[[Console, Path | None], None]
RunFlow = Callable[[Callable[[Audience], object], Console, ShowFailed], Path]


def sweep_at_terminal(config: SweepConfig, console: Console, run_flow: RunFlow) -> None:
    """Run the flow with its progress on ``console``; the last line is the path of the winner's hand-off.

    A temporary server has no limits: there it gets one slot, for this machine.
    """

    def flow(audience: Audience) -> None:
        limit = limit_of_members(config.sweep.accelerator, kind_of(config.compute))
        if limit is not None and not server_outlives_the_run():
            make_own_limit(limit)
        followed("dpo-sweep", run_sweep, audience)(config)

    folder = run_flow(flow, console, show_sweep_table)
    show_sweep_table(console, folder)
    say(f"handoff: {read_run(folder).outputs['handoff']}")


def show_sweep_table(console: Console, folder: Path | None) -> None:
    """Show the members of a sweep, and where the picture is; nothing where it did not get there."""
    if folder is None or not (folder / SWEEP_FILE).is_file():
        return
    outcome = SweepOutcome.model_validate_json(read_regular(folder / SWEEP_FILE, LARGEST_RESULT_BYTES))
    rows = sweep_rows(outcome)
    show_table(
        console, list(rows[0]), [list(map(str, row.values())) for row in rows], f"sweep by {outcome.metric}"
    )
    if lead := lead_in_words(outcome):
        tell(console, lead)
    tell(console, f"picture: {folder / PICTURE_FILE}\nreport: {folder / REPORT_FILE}\nrun: {folder}")
