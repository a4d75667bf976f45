"""Between evaluate and upload: is the checkpoint released? The gate's rules say so, then, if asked for, a person.

A no ends the run in a state of its own (``GateFailed``, ``ApprovalRejected``, ``ApprovalTimedOut``): nothing is uploaded.
"""

from typing import Literal
from uuid import UUID

from prefect import pause_flow_run, suspend_flow_run
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout, Pause
from prefect.input import RunInput
from prefect.runtime import deployment
from prefect.settings import PREFECT_UI_URL
from prefect.states import Failed, State
from pydantic import Field

from dpo_core.contract.errors import ApprovalRejected, ApprovalTimedOut, ConfigError, NotReleased
from dpo_core.contract.store import write_json
from flows.audience import Audience
from flows.serve.local_prefect import server_outlives_the_run
from flows.settings.stage_config import StageConfig
from flows.stage_parts import Candidate, StageRun
from tasks.check_gate import check_gate
from tasks.events.chain import this_run
from tasks.gate.approval import (
    APPROVAL_FILE,
    Approval,
    Release,
    answered,
    approval_path,
    keep_approval,
    read_approval,
)
from tasks.gate.config import GateConfig
from tasks.gate.rules import GATE_FILE, GateCheck
from tasks.gate.signs import checks_of
from tasks.report.question import Judged, question_markdown
from tasks.run.files import read_run_files
from tasks.show.artifacts import show_approval
from tasks.show.reported_run import show_report

SECONDS_BETWEEN_LOOKS = 5  # while paused, for an answer


class Decision(RunInput):
    """The form on the page of a waiting run."""

    decision: Literal["approve", "reject"] = Field(
        description="approve: upload and hand off. reject: end the run."
    )
    name: str = Field(min_length=1, description="Your name; it goes into the record.")
    reason: str = Field(min_length=1, description="Why; it goes into the record.")


def check_somebody_can_answer(gate: GateConfig, audience: Audience) -> None:
    """Check, before hours of training, that an approval is possible where this run will wait. Raises ``ConfigError``."""
    if gate.approval == "none" or (audience.ask and gate.wait == "pause"):
        return
    if gate.wait == "suspend" and deployment.get_id() is None:
        raise ConfigError(
            "gate.wait suspend ends the process, and only a run of a deployment is started again by a worker. "
            "Start it as one (`prefect deployment run dpo-stage/manual`), or set gate.wait to pause."
        )
    if not server_outlives_the_run():
        raise ConfigError(
            "gate.approval person needs someone to ask, and this run has neither a terminal nor a Prefect "
            "server. Start it at a terminal; or start a server, set PREFECT_API_URL to it and answer on the "
            "run's page; or set gate.approval to none."
        )


def release(config: StageConfig, candidate: Candidate, run: StageRun) -> Release:
    """Run gate -> approve. Raises ``NotReleased``: a rule does not hold, or a person says no or nothing."""
    checks = checks_of(
        config.gate, config.evaluation, candidate.evaluation, candidate.benchmarks, candidate.judgement
    )
    if checks:
        with run.folder.task("gate"):
            write_json(run.folder.folder / GATE_FILE, [check.model_dump() for check in checks])
            run.folder.output("gate", run.folder.folder / GATE_FILE)
            check_gate(checks, candidate.place, config.name)
    if config.gate.approval == "none":
        return Release(checks=checks)
    with run.folder.task("approve"):
        return Release(checks=checks, approval=approve(config, candidate, checks, run))


def approve(
    config: StageConfig, candidate: Candidate, checks: tuple[GateCheck, ...], run: StageRun
) -> Approval:
    """Return a person's approval of this checkpoint, an earlier one of the same included. Raises ``NotReleased``."""
    kept = approval_path(
        run.place.store,
        candidate.exported,
        candidate.evaluation,
        checks,
        candidate.benchmarks,
        candidate.judgement,
    )
    approval = read_approval(kept)
    if approval is None:
        show_report(run.folder.folder)  # what the person is to judge
        question = question_markdown(
            config.name,
            candidate.place,
            checks,
            Judged(
                candidate.evaluation,
                candidate.benchmarks,
                candidate.judgement,
                candidate.trained.best,
                read_run_files(run.folder.folder).sweep,
                candidate.judged.preferences if candidate.judged else (),
            ),
            config.evaluation,
            PREFECT_UI_URL.value(),
        )
        ask = run.audience.ask
        approval = (ask(question) if ask else None) or ask_in_prefect(question, config.gate, run)
    write_json(run.folder.folder / APPROVAL_FILE, approval)
    run.folder.output("approval", run.folder.folder / APPROVAL_FILE)
    show_approval(approval, config.name)
    if approval.decision == "reject":
        raise ApprovalRejected(
            f"{approval.name} rejected the checkpoint: {approval.reason}. It is neither uploaded nor "
            f"handed off, and stays at {candidate.exported.path}."
        )
    keep_approval(kept, approval)
    return approval


def ask_in_prefect(question: str, gate: GateConfig, run: StageRun) -> Approval:
    """Wait on the run's page for an answer. Raises ``ApprovalTimedOut``; ``Pause``, which ends the process, to suspend."""
    form = Decision.with_initial_data(description=question)
    with get_client(
        sync_client=True
    ) as client:  # a run that is retried asks anew, one that is resumed does not
        key = f"approval-{client.read_flow_run(_own_id()).run_count}"
    try:
        if gate.wait == "suspend":
            given = suspend_flow_run(wait_for_input=form, timeout=gate.timeout_seconds, key=key)
        else:
            given = pause_flow_run(
                wait_for_input=form,
                timeout=gate.timeout_seconds,
                key=key,
                poll_interval=SECONDS_BETWEEN_LOOKS,
            )
    except Pause:
        run.folder.suspend()
        raise
    except FlowPauseTimeout as error:
        raise ApprovalTimedOut(
            f"Nobody approved or rejected the checkpoint within {gate.timeout_seconds} s "
            "(gate.timeout_seconds). Start the run again to be asked again: finished steps are kept."
        ) from error
    return answered(given.decision, given.name, given.reason, asked_in="prefect")


def _own_id() -> UUID:
    run_id = this_run()
    assert run_id is not None  # a flow alone asks
    return run_id


def state_of_the_end(error: NotReleased) -> State:
    """Return the state for a flow to end in: failed, and named like the error, so that lists and events tell it from a
    defect.
    """
    state: State = Failed(name=type(error).__name__, message=str(error), data=error)
    if isinstance(
        error, ApprovalTimedOut
    ):  # from a pause that ran out Prefect's rules let only its own failure through
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(_own_id(), Failed(name=state.name, message=state.message), force=True)
    return state
