"""What `pairline reap` finds: what launchers left running that no live run owns."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from dpo_core.contract.errors import PairlineError
from tasks.launch.launchers import LAUNCHERS

RunState = Literal["live", "over", "unknown"]
StateOf = Callable[[str], RunState]  # of a flow run, by its id
OnlyOf = Collection[str] | None  # the flow runs of which alone something is ended, by their ids; None: of all


@dataclass(frozen=True, slots=True)
class Reaped:
    """What was found and done (or would be: dry run)."""

    name: str  # of the container or job
    step: str
    run: str
    folder: str
    reason: str  # why it is orphaned; empty if it is left alone
    done: str  # "stopped and removed", "removed", "left alone: ...", "failed: ..."


def reap_all(
    dry_run: bool = False, state_of: StateOf = lambda flow_run_id: "unknown", only_of: OnlyOf = None
) -> list[Reaped]:
    """Go through what every launcher has running under our name. ``state_of``: for whoever can ask Prefect.

    Raises the error of a launcher that cannot look, unless another one could.
    """
    found, looked, errors = list[Reaped](), False, list[PairlineError]()
    for load in LAUNCHERS.values():
        try:
            reaped = load().reap(dry_run, state_of, only_of)
        except PairlineError as error:
            errors.append(error)
            continue
        looked = looked or reaped is not None
        found += reaped or []
    if errors and not looked:
        raise errors[0]
    return found
