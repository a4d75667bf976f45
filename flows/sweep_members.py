"""Trains the members of a sweep, as many at once as there are slots. A member that fails does not lose the others."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace

from prefect.runtime import flow_run

from dpo_core.contract.errors import ConfigError, NonFinite, OutOfMemory, PairlineError, PolicyDegraded
from flows.accelerator import slot
from flows.settings.sweep_config import Member
from flows.stage_parts import Candidate, StageRun, train_and_evaluate
from tasks.gate.signs import checks_of
from tasks.show.cluster_page import ClusterPage
from tasks.show.reported_run import reported_run
from tasks.show.run_log import ThinnedLines
from tasks.sweep.outcomes import MemberOutcome
from tasks.train_dpo import TrainingInputs

SECONDS_BETWEEN_LOOKS = 0.2
OF_ITS_OWN_MAKING = (
    ConfigError,
    NonFinite,
    OutOfMemory,
    PolicyDegraded,
)  # follows from a member's settings; the rest strikes any


@dataclass(frozen=True, slots=True)
class MemberResult:
    """What became of a member, and its checkpoint unless it failed."""

    member: Member
    outcome: MemberOutcome
    candidate: Candidate | None = None
    error: Exception | None = None

    @property
    def interrupted(self) -> bool:
        """Whether it failed by something that its settings are not to blame for, so that it may win yet."""
        return self.error is not None and not isinstance(self.error, OF_ITS_OWN_MAKING)


def run_members(
    members: Sequence[Member],
    inputs: TrainingInputs,
    sweep: StageRun,
    accelerator: str | None,
    num_at_once: int,
) -> list[MemberResult]:
    """Return all members' results, in their order. Each trains in a thread of its own, so that the flow's can be
    cancelled: then the steps at work are asked to stop, and what they have done so far is kept."""
    stop = threading.Event()
    sweep = replace(sweep, place=replace(sweep.place, context=replace(sweep.place.context, stop=stop)))
    with ThreadPoolExecutor(max_workers=min(num_at_once, len(members)), thread_name_prefix="member") as pool:
        # Prefect's own context: of the flow run that a member's tasks and log lines belong to.
        futures = [
            pool.submit(copy_context().run, _run_member, member, inputs, sweep, accelerator)
            for member in members
        ]
        try:
            return _results(futures)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _results(futures: Sequence[Future]) -> list[MemberResult]:
    """Waits in small bites: a signal is delivered between them."""
    while not all(future.done() for future in futures):
        time.sleep(SECONDS_BETWEEN_LOOKS)
        for future in futures:
            if future.done():
                future.result()  # raises only what is no member's own failure
    return [future.result() for future in futures]


def _run_member(
    member: Member, inputs: TrainingInputs, sweep: StageRun, accelerator: str | None
) -> MemberResult:
    outcome = MemberOutcome(number=member.number, label=member.label, settings=member.settings, run="")
    if not member.config.objective.needs_reference:
        inputs = replace(inputs, reference=None, reference_checkpoint=None)
    try:
        with (
            slot(accelerator, sweep.place.context),
            sweep.folder.task(f"member {member.number}: {member.label}"),
            _own_run(member, sweep) as run,
        ):
            outcome = outcome.model_copy(update={"run": run.folder.folder.name})
            candidate = train_and_evaluate(member.config, inputs, run)
    except Exception as error:
        kind = error.kind if isinstance(error, PairlineError) else type(error).__name__
        result = MemberResult(member, outcome.model_copy(update={"error": f"{kind}: {error}"}), error=error)
        return replace(result, outcome=result.outcome.model_copy(update={"interrupted": result.interrupted}))
    checks = checks_of(
        member.config.gate,
        member.config.evaluation,
        candidate.evaluation,
        candidate.benchmarks,
        candidate.judgement,
    )
    return MemberResult(
        member,
        outcome.model_copy(
            update={
                "before": candidate.metrics("before"),
                "after": candidate.metrics("after"),
                "errors": candidate.benchmarks.errors if candidate.benchmarks else {},
                "checks": checks,
            }
        ),
        candidate,
    )


@contextmanager
def _own_run(member: Member, sweep: StageRun) -> Iterator[StageRun]:
    """A run folder of its own, so that members can be looked at and compared like other runs. The terminal is outcome of a
    member as one step of the sweep."""
    place = sweep.place
    with reported_run(place.store, member.config.name, member.config, flow_run.get_id()) as folder:
        context = folder.context(
            replace(place.context, lines=ThinnedLines(), on_cluster_job=ClusterPage(member.config.name))
        )
        yield replace(sweep, folder=folder, place=replace(place, context=context))
