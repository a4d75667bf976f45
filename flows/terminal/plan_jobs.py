"""What `pairline plan` shows of a launcher that hands steps on: each step's job, as it would be submitted."""

from dpo_core.contract.benchmark_job import BenchmarkJob
from dpo_core.contract.data_jobs import MixJob
from dpo_core.contract.jobs import AnswerJob, EvaluateJob, ExportJob, ReferenceJob, TrainJob
from dpo_core.contract.judge_job import JudgeJob
from flows.settings.stage_config import StageConfig
from tasks.launch.command import typical_command
from tasks.launch.launcher import kind_of
from tasks.launch.stop_grace import LEAST_SECONDS
from tasks.text.terminal import say

ALWAYS = (MixJob, ReferenceJob, TrainJob, ExportJob, EvaluateJob, JudgeJob, BenchmarkJob, AnswerJob)


def show_jobs(config: StageConfig, training_grace: int = LEAST_SECONDS) -> None:
    """Print each step's job; nothing for a launcher whose steps are processes or containers. ``training_grace``: seconds
    that a training gets once it is asked to stop, as the run will find them. Raises ``ConfigError``."""
    launcher = kind_of(config.compute)
    for job in ALWAYS:
        if job is ReferenceJob and not config.objective.needs_reference:
            continue
        if job is JudgeJob and not config.judge.is_on:
            continue
        if job is BenchmarkJob and not config.benchmarks.tasks:
            continue
        machine = launcher.target(config.compute, config, job.step)
        store = config.store.root.expanduser().resolve()
        grace = training_grace if job is TrainJob else LEAST_SECONDS
        command = typical_command(job.step, config.compute, machine, store, grace)
        if text := launcher.preview(config.compute, config, command):
            say(text)
