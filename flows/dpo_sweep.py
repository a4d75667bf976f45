"""The flow: one stage trained in many ways. Everything before the training is shared, and only the winner is released."""

from dataclasses import replace

from prefect import State, flow

from dpo_core.contract.benchmarks import TaskScores
from dpo_core.contract.errors import GateFailed, NotReleased, PairlineError
from dpo_core.contract.store import write_json
from flows.accelerator import limit_of_members, num_slots
from flows.audience import NOBODY, Audience
from flows.before_start import check_before_start
from flows.judging import with_judge_asked_first
from flows.release import check_somebody_can_answer, release, state_of_the_end
from flows.scores import record
from flows.settings.as_read import as_read
from flows.settings.stage_config import StageConfig
from flows.settings.sweep_config import Member, SweepConfig, members_of
from flows.stage_parts import Candidate, prepare, publish, stage_run, try_directories, try_upload
from flows.sweep_members import MemberResult, run_members
from tasks.handoff.schema import RLVRHandoff
from tasks.handoff.signature import signing_key
from tasks.launch.launcher import kind_of
from tasks.run.folder import RunFolder
from tasks.show.sweep_artifacts import show_sweep
from tasks.sweep.outcomes import SWEEP_FILE, judge, why_nobody_won, with_leads


@flow(name="dpo-sweep", persist_result=False)
def dpo_sweep(config: SweepConfig) -> RLVRHandoff | State:
    """Run fetch checkpoint -> mix data -> cache reference -> members: train -> evaluate -> winner: gate, approve ->
    upload -> hand off."""
    return run_sweep(config)


def run_sweep(config: SweepConfig, audience: Audience = NOBODY) -> RLVRHandoff | State:
    """Run the body of the flow."""
    config = as_read(config)
    members = members_of(config)
    for member in members:
        check_before_start(member.config)
        signing_key(member.config.handoff)
    check_somebody_can_answer(config.gate, audience)
    accelerator = limit_of_members(config.sweep.accelerator, kind_of(config.compute))
    num_at_once = num_slots(accelerator) if accelerator else len(members)
    try:
        with stage_run(config, audience) as run:
            run = replace(run, place=with_judge_asked_first(config, run.place))
            configs = [member.config for member in members]
            try_upload(configs, config.name, run)
            inputs = prepare(shared_settings(members), run)
            try_directories(configs, config.name, inputs)
            results = run_members(members, inputs, run, accelerator, num_at_once)
            winner, candidate = choose(results, config, run.folder)
            released = release(winner, candidate, run)
            handoff, _ = publish(winner, inputs, candidate, released, run)
    except NotReleased as error:
        return state_of_the_end(error)
    return handoff


def shared_settings(members: tuple[Member, ...]) -> StageConfig:
    """Return a member whose preparation serves all: one that needs the reference, if any does."""
    return next(
        (member.config for member in members if member.config.objective.needs_reference), members[0].config
    )


def choose(results: list[MemberResult], config: SweepConfig, run: RunFolder) -> tuple[StageConfig, Candidate]:
    """Return the winner's settings, under the sweep's own name, and its checkpoint. Leaves ``sweep.json``, table and
    picture.

    Raises ``GateFailed`` if no member passes the gate; the error of the first member if all failed; an error of the kind
    that interrupted a member, if one was: a winner of part of the grid is none.
    """
    with run.task("choose winner"):
        outcome = judge([result.outcome for result in results], config.sweep.metric)
        outcome = with_leads(outcome, _scores_of(results))
        write_json(run.folder / SWEEP_FILE, outcome)
        run.output("sweep", run.folder / SWEEP_FILE)
        show_sweep(outcome, run.folder, config.name)
        if interrupted := [result for result in results if result.interrupted]:
            raise _unfinished(interrupted, len(results))
        errors = [result.error for result in results if result.error is not None]
        if len(errors) == len(results):
            raise errors[0]
        if outcome.winner is None:
            raise GateFailed(
                f"No member of the sweep can win: {why_nobody_won(outcome)}. Nothing is uploaded or handed "
                "off."
            )
        won = results[outcome.winner - 1]
        assert won.candidate is not None  # a member without a checkpoint cannot win
        for step, result in won.candidate.results().items():  # the sweep's page shows the winner
            run.result(step, result)
        if won.candidate.benchmarks:
            record(won.candidate.benchmarks, run)
        return won.member.config.model_copy(update={"name": config.name}), won.candidate


def _scores_of(results: list[MemberResult]) -> dict[int, tuple[TaskScores, ...]]:
    """By the members' numbers, with what each document gave."""
    return {
        result.member.number: result.candidate.scored.scores
        for result in results
        if result.candidate and result.candidate.scored
    }


def _unfinished(interrupted: list[MemberResult], num_members: int) -> PairlineError:
    """The error of a sweep some of whose members did not come to an end."""
    first = interrupted[0].error
    kind = type(first) if isinstance(first, PairlineError) else PairlineError
    error = kind(
        f"{len(interrupted)} of {num_members} members did not come to an end, and no winner is chosen among the "
        f"others: {'; '.join(result.member.label for result in interrupted)}. Start the sweep again: it goes on "
        f"with what is done. The first one's error: {first}"
    )
    error.__cause__ = first
    return error
