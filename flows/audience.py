"""Who follows a run in the process that started it.

What lives in a process cannot be a flow's parameter: those are written down, and are the form of its deployment. So the
command line runs a flow of its own, of the same name and body, that knows its audience.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from prefect import flow

from dpo_core.contract.section import Section
from tasks.gate.approval import Ask
from tasks.launch.context import OnClusterJob, OnProgress
from tasks.run.folder import OnTask

C = TypeVar("C", bound=Section)


@dataclass(frozen=True, slots=True)
class Audience:
    """A terminal, as a rule: hears of tasks, of steps' progress and jobs on a cluster, and is asked for approvals."""

    on_task: OnTask | None = None
    on_progress: OnProgress | None = None
    ask: Ask | None = None
    on_cluster_job: OnClusterJob | None = None


NOBODY = Audience()  # where a worker starts the run


def followed(name: str, body: Callable[[C, Audience], Any], audience: Audience) -> Callable[[C], Any]:
    """Return ``body`` as the flow ``name``, followed by ``audience``."""

    @flow(name=name, persist_result=False)
    def for_audience(config: Any) -> Any:
        return body(config, audience)

    return for_audience
