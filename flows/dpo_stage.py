"""The flow: SFT checkpoint and preference data -> a DPO-aligned checkpoint that an RLVR run can start from.

The order of the steps; each part stands in ``flows/stage_parts.py`` and ``flows/release.py``.
"""

from dataclasses import replace

from prefect import State, flow

from dpo_core.contract.errors import NotReleased
from flows.accelerator import slot_of
from flows.audience import NOBODY, Audience
from flows.before_start import check_before_start
from flows.judging import with_judge_asked_first
from flows.release import check_somebody_can_answer, release, state_of_the_end
from flows.settings.as_read import as_read
from flows.settings.stage_config import StageConfig
from flows.stage_parts import prepare, publish, stage_run, train_and_evaluate, try_directories, try_upload
from tasks.handoff.schema import RLVRHandoff
from tasks.handoff.signature import signing_key


@flow(name="dpo-stage", persist_result=False)
def dpo_stage(config: StageConfig) -> RLVRHandoff | State:
    """Run build image -> fetch checkpoint -> mix data -> cache reference -> train -> evaluate -> gate -> upload -> hand
    off.
    """
    return run_stage(config)


def run_stage(config: StageConfig, audience: Audience = NOBODY) -> RLVRHandoff | State:
    """Run the body of the flow."""
    config = as_read(config)
    check_before_start(config)
    signing_key(config.handoff)
    check_somebody_can_answer(config.gate, audience)
    try:
        with stage_run(config, audience) as run:
            run = replace(run, place=with_judge_asked_first(config, run.place))
            try_upload([config], config.name, run)
            inputs = prepare(config, run)
            try_directories([config], config.name, inputs)
            with slot_of(run.place.launcher, run.place.context):  # shared with the members of sweeps
                candidate = train_and_evaluate(config, inputs, run)
            released = release(config, candidate, run)
            handoff, _ = publish(config, inputs, candidate, released, run)
    except NotReleased as error:
        return state_of_the_end(error)
    return handoff
