"""The tasks of a run in their order, those that are still to come included. Those are expected, not promised: a gate may
end the run before them."""

import contextlib
from typing import Any, NamedTuple

from pydantic import ValidationError

from dpo_core.contract.objectives import OBJECTIVES
from tasks.gate.config import GateConfig
from tasks.run.folder import RunRecord
from tasks.run.state import run_state, task_state

TO_COME = "to come"
PREPARING, ENDING = ("fetch checkpoint", "mix sets", "mix data", "cache reference"), ("upload", "hand off")
OF_PREPARED = "-prepared"  # how names of runs end that only prepare


class Link(NamedTuple):
    """A task: ``state`` as of a task's record, or "to come"."""

    name: str
    state: str
    seconds: float | None = None


def chain_of(record: RunRecord, config: dict[str, Any]) -> tuple[Link, ...]:
    """Return the tasks of a run; ``config``: its settings, as its folder holds them, of this version or another one."""
    begun = [Link(task.name, task_state(task, record), task.seconds) for task in record.tasks]
    if run_state(record) not in ("running", "suspended"):
        return tuple(begun)
    names, expected = {link.name for link in begun}, _expected(record, config)
    reached = max((place for place, name in enumerate(expected) if name in names), default=-1)
    return (*begun, *(Link(name, TO_COME) for name in expected[reached + 1 :]))


def _expected(record: RunRecord, config: dict[str, Any]) -> list[str]:
    """The stage's own order (``flows/stage_parts.py``), as far as the settings tell which parts it has."""
    left_out = {"cache reference"} if not _needs_reference(config) else set[str]()
    left_out |= {"mix sets"} if not _section(config, "evaluation").get("sets") else set()
    preparing = [name for name in PREPARING if name not in left_out]
    if record.name.endswith(OF_PREPARED):
        return preparing
    scored = bool(_section(config, "benchmarks").get("tasks"))
    first, last = (["benchmark of SFT"], ["benchmark"]) if scored else ([], [])
    judged = ["judge"] if _section(config, "judge").get("kind", "none") != "none" else []
    middle = [*first, "train", "evaluate", *judged, *last]
    if record.tasks and record.tasks[0].name == middle[0]:
        return middle  # a member of a sweep, which does the rest
    if "sweep" in config:
        middle = ["choose winner"]
    gate = _gate(config)
    stops = bool(_section(_section(config, "evaluation"), "warnings").get("stop"))
    judging = ["gate"] if gate.has_rules or stops else []
    judging += ["approve"] if gate.approval == "person" else []
    return [*preparing, *middle, *judging, *ENDING]


def _needs_reference(config: dict[str, Any]) -> bool:
    losses = config.get("losses") or (config.get("loss"),)
    names = [loss.get("name") for loss in losses if isinstance(loss, dict)]
    return any(name not in OBJECTIVES or OBJECTIVES[name].needs_reference for name in names) or not names


def _gate(config: dict[str, Any]) -> GateConfig:
    with contextlib.suppress(ValidationError):  # of a version that knows other rules
        return GateConfig.model_validate(_section(config, "gate"))
    return GateConfig()


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}
