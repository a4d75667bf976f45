"""The part of the stage before the training, alone, on a host that need not be the trainer's.

What it makes lies in the store under the names that a run looks for, so nothing has to be told to the run. The job that
comes next is written down, too: for `pairline job-spec`, or to be run by hand.
"""

import contextlib

from dpo_core.contract.errors import ConfigError, StoreBusy
from dpo_core.contract.job import Job
from flows.audience import Audience
from flows.before_start import check_before_start, check_inputs
from flows.settings.as_read import as_read
from flows.settings.stage_config import StageConfig
from flows.stage_parts import StageRun, prepare, reference_of, stage_run, training_settings
from tasks.cache_reference import reference_job
from tasks.launch.own_folder import claim
from tasks.launch.run_job import in_store
from tasks.train_dpo import TrainingInputs, train_job

NAME_ENDS = "-prepared"  # of its runs: they are no runs of the stage, and none is taken for one
NEXT = "next"  # among a run's outputs: the folder of the job that was written down


def prepare_stage(with_reference: bool, config: StageConfig, audience: Audience) -> None:
    """Run fetch checkpoint -> mix data, and -> cache reference where it is asked for and the objective needs one."""
    config = as_read(config)
    (check_before_start if with_reference else check_inputs)(config)
    named = config.model_copy(update={"name": config.name + NAME_ENDS})
    with stage_run(named, audience) as run:
        inputs = prepare(named, run, with_reference)
        with contextlib.suppress(ConfigError, StoreBusy):  # of other cards, or at work already
            _write_next_job(config, inputs, run)


def _write_next_job(config: StageConfig, inputs: TrainingInputs, run: StageRun) -> None:
    place = run.place
    job: Job
    if config.objective.needs_reference and inputs.reference is None:
        model, base_weights = reference_of(config, inputs.policy, place)
        job = reference_job(config.reference, config.train, model, base_weights, inputs.mixture, place)
    else:
        job = train_job(inputs, training_settings(config), place.launcher.compute)
    if place.has_result(job):
        return
    job = in_store(job, place.store)
    with claim(job.out_dir):
        job.write()
    run.folder.output(NEXT, job.out_dir)
