"""``pairline status``: the runs of a store, from their files."""

from pathlib import Path

from rich.console import Console

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.visible import one_line
from tasks.report.timeline import duration
from tasks.run.find import find_run
from tasks.run.folder import RUN_LOG_FILE, RunRecord, read_run, read_runs
from tasks.run.state import run_state, task_state
from tasks.text.terminal import show_table, tell


def current_task(record: RunRecord) -> str:
    """Return the last task that began, with its state unless it is done."""
    if not record.tasks:
        return "-"
    last = record.tasks[-1]
    return last.name if last.state == "completed" else f"{last.name} ({last.state})"


def show_runs(store: Path, console: Console) -> None:
    """Show one line a run, newest last. Raises ``ConfigError`` if there is no store."""
    for folder, record in _runs(store):
        task = f"{current_task(record)}, {duration(record.seconds)}"
        result = (
            f"handoff: {record.outputs['handoff']}" if "handoff" in record.outputs else (record.error or "")
        )
        first = result.splitlines()[0] if result else ""
        tell(console, one_line(f"{folder.name}  {run_state(record):<12}  {task}  {first}"))


def show_run(store: Path, name: str, console: Console) -> None:
    """Show one run: its tasks, results, error and log. Raises ``ConfigError`` for an unknown name."""
    folder = find_run(name, store)
    record = read_run(folder)
    show_table(
        console,
        ("task", "state", "duration"),
        [(task.name, task_state(task, record), duration(task.seconds)) for task in record.tasks],
        f"{folder.name}: {run_state(record)}",
    )
    lines = [one_line(f"{what}: {where}") for what, where in record.outputs.items()] + [
        f"log: {folder / RUN_LOG_FILE}"
    ]
    lines += [f"error: {record.error}"] if record.error else []
    tell(console, "\n".join(lines))


def _runs(store: Path) -> list[tuple[Path, RunRecord]]:
    if not store.is_dir():
        raise ConfigError(f"There is no store at {store}. Give the store.root of the recipe with --store.")
    return read_runs(store)
