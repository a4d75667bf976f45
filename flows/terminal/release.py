"""What the command line shows of the gate, and how it asks the person in front of it for an approval."""

import getpass
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console

from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.results import LARGEST_RESULT_BYTES
from flows.serve.local_prefect import server_outlives_the_run
from tasks.gate.approval import Approval, Ask, Verdict, answered
from tasks.gate.rules import GATE_FILE, GateCheck, check_table
from tasks.text.terminal import show_markdown, show_table, tell

HoldDisplay = Callable[[], AbstractContextManager[None]]
VERDICTS: dict[str, Verdict] = {"approve": "approve", "a": "approve", "reject": "reject", "r": "reject"}


def show_gate(console: Console, folder: Path | None) -> None:
    """Show the gate's table of a run; nothing where it had no rule or did not get there."""
    if folder is None or not (folder / GATE_FILE).is_file():
        return
    checks = json.loads(read_regular(folder / GATE_FILE, LARGEST_RESULT_BYTES))
    rows = check_table([GateCheck.model_validate(check) for check in checks])
    show_table(console, list(rows[0]), [list(row.values()) for row in rows], "gate")


def ask_at_terminal(console: Console, hold_display: HoldDisplay) -> Ask:
    """Show the question and read the answer from the terminal."""

    def ask(question: str) -> Approval:
        with hold_display():
            show_markdown(console, question)
            decision = None
            while decision is None:
                decision = VERDICTS.get(_line(console, "approve or reject? ").lower())
            name = _line(console, f"your name [{getpass.getuser()}]: ") or getpass.getuser()
            reason = ""
            while not reason:
                reason = _line(console, "why? ")
        return answered(decision, name, reason, asked_in="terminal")

    return ask


def _line(console: Console, prompt: str) -> str:
    """A line typed in. The end of input is a wish to stop, like Ctrl-C: the run can be started again to go on."""
    try:
        return console.input(prompt, markup=False).strip()
    except EOFError:
        raise KeyboardInterrupt from None


def tell_where_to_answer(console: Console, hold_display: HoldDisplay) -> Ask:
    """Say where the run, which will wait on the user's own server, is answered."""

    def ask(question: str) -> None:
        from prefect.runtime import flow_run

        with hold_display():
            url = flow_run.get_flow_run_ui_url()
            tell(
                console,
                f"The run waits for a person. Answer on its page{f' {url}' if url else ''} (Resume), or with "
                "`pairline approve` or `pairline reject`.",
            )

    return ask


def ask_here(console: Console, hold_display: HoldDisplay) -> Ask | None:
    """Return how approvals are asked for: on the page of the user's own server, or, as a temporary one has no page that
    could be answered on, at the terminal. None where there is neither: then the flow refuses to start."""
    if server_outlives_the_run():
        return tell_where_to_answer(console, hold_display)
    return ask_at_terminal(console, hold_display) if sys.stdin.isatty() else None
