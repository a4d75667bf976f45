"""What `pairline plan` shows of a launcher that hands steps on: each step's job, as it would be submitted."""

from dpo_core.contract.benchmark_job import BenchmarkJob
from dpo_core.contract.data_jobs import MixJob
from dpo_core.contract.jobs import AnswerJob, EvaluateJob, ExportJob, ReferenceJob, TrainJob
from dpo_core.contract.judge_job import JudgeJob
from flows.settings.stage_config import StageConfig
from tasks.launch.command import typical_command
from tasks.launch.launcher import kind_of
from tasks.text.terminal import say

ALWAYS = (MixJob, ReferenceJob, TrainJob, ExportJob, EvaluateJob, JudgeJob, BenchmarkJob, AnswerJob)


def show_jobs(config: StageConfig) -> None:
    """Print each step's job; nothing for a launcher whose steps are processes or containers. Raises ``ConfigError``."""
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
        if text := launcher.preview(
            config.compute, config, typical_command(job.step, config.compute, machine, store)
        ):
            say(text)
