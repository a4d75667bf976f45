"""``pairline status``: the runs of a store, from their files."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from dpo_core.errors import ConfigError
from tasks.report.run_folder import RunRecord, StepRecord, is_alive, read_runs


def state_of(record: RunRecord) -> str:
    """The run's state; a run that says "running" but has no process was killed."""
    return "killed" if record.state == "running" and not is_alive(record) else record.state


def current_step(record: RunRecord) -> str:
    """The last step that began, with its state unless it is done."""
    if not record.steps:
        return "-"
    last = record.steps[-1]
    return last.name if last.state == "completed" else f"{last.name} ({last.state})"


def show_runs(store: Path, console: Console) -> None:
    """One line a run, newest last. Raises ``ConfigError`` if there is no store."""
    for folder, record in _runs(store):
        steps = f"{current_step(record)}, {duration(record.seconds)}"
        result = f"handoff: {record.outputs['handoff']}" if "handoff" in record.outputs else (record.error or "")
        console.print(f"{folder.name}  {state_of(record):<9}  {steps}  {result.splitlines()[0] if result else ''}",
                      soft_wrap=True, highlight=False, markup=False)


def show_run(store: Path, name: str, console: Console) -> None:
    """One run: its steps, results, error and log. Raises ``ConfigError`` for an unknown name."""
    runs = {folder.name: (folder, record) for folder, record in _runs(store)}
    if not runs or (name != "last" and name not in runs):
        raise ConfigError(f"There is no run {name!r} in {store}. `pairline status --store {store}` lists them.")
    folder, record = runs[name] if name != "last" else list(runs.values())[-1]
    table = Table("step", "state", "duration", title=f"{folder.name}: {state_of(record)}")
    for step in record.steps:
        table.add_row(step.name, _step_state(step, record), duration(step.seconds))
    console.print(table)
    lines = [f"{what}: {where}" for what, where in record.outputs.items()] + [f"log: {folder / 'run.log'}"]
    lines += [f"error: {record.error}"] if record.error else []
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


def _step_state(step: StepRecord, record: RunRecord) -> str:
    return "killed" if step.state == "running" and state_of(record) == "killed" else step.state


def _runs(store: Path) -> list[tuple[Path, RunRecord]]:
    if not store.is_dir():
        raise ConfigError(f"There is no store at {store}. Give the store.root of the recipe with --store.")
    return read_runs(store)


def duration(seconds: float | None) -> str:
    """ "1 h 02 min", "3 min 20 s", "4.2 s" """
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
