"""How a run stands, in a word: what ``pairline status``, the report and comparisons all say."""

from dpo_core.contract.errors import NotReleased
from tasks.run.folder import RunRecord, TaskRecord, is_alive

NOT_RELEASED = frozenset(kind.kind for kind in NotReleased.__subclasses__())


def run_state(record: RunRecord) -> str:
    """Return the record's state, but "killed" for a run that says "running" and has no process, and "not released" for
    one that the gate or a person stopped."""
    if record.state == "failed" and record.error_kind in NOT_RELEASED:
        return "not released"
    return "killed" if record.state == "running" and not is_alive(record) else record.state


def is_over(record: RunRecord) -> bool:
    """Return whether nothing of a run goes on: neither is it at work, nor does it wait for a person."""
    return run_state(record) not in ("running", "suspended")


def task_state(task: TaskRecord, record: RunRecord) -> str:
    """Return the state of one of a run's tasks."""
    return "killed" if task.state == "running" and run_state(record) == "killed" else task.state
