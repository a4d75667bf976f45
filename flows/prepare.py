"""The part of the stage before the training, alone, on a host that need not be the trainer's.

What it makes lies in the store under the names that a run looks for, so nothing has to be told to the run.
"""

from flows.audience import Audience
from flows.before_start import check_before_start, check_inputs
from flows.settings.stage_config import StageConfig
from flows.stage_parts import prepare, stage_run

NAME_ENDS = "-prepared"  # of its runs: they are no runs of the stage, and none is taken for one


def prepare_stage(with_reference: bool, config: StageConfig, audience: Audience) -> None:
    """Run fetch checkpoint -> mix data, and -> cache reference where it is asked for and the objective needs one."""
    (check_before_start if with_reference else check_inputs)(config)
    named = config.model_copy(update={"name": config.name + NAME_ENDS})
    with stage_run(named, audience) as run:
        prepare(named, run, with_reference)
