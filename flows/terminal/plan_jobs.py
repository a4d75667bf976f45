"""What `pairline plan` shows of a launcher that hands steps on: each step's job, as it would be submitted."""

from collections.abc import Iterator

from dpo_core.contract.benchmark_job import BenchmarkJob
from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.data_jobs import ConvertJob, DequantiseJob, FetchJob, MixJob
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.job import Job
from dpo_core.contract.jobs import AnswerJob, EvaluateJob, ExportJob, ReferenceJob, RehearseJob, TrainJob
from dpo_core.contract.judge_job import JudgeJob
from flows.settings.stage_config import StageConfig
from flows.terminal.model_size import local_folder
from tasks.checkpoint.files import weights_in
from tasks.launch.command import typical_command
from tasks.launch.launcher import kind_of
from tasks.launch.stop_grace import LEAST_SECONDS
from tasks.text.terminal import say

NOT_KNOWN_YET = (
    "# {step}: only if a checkpoint's weights are no plain safetensors, which is known once it is fetched:"
)


def show_jobs(config: StageConfig, training_grace: int = LEAST_SECONDS) -> None:
    """Print each step's job; nothing for a launcher whose steps are processes or containers. ``training_grace``: seconds
    that a training gets once it is asked to stop, as the run will find them. Raises ``ConfigError``."""
    launcher = kind_of(config.compute)
    for job, is_known in _jobs(config):
        machine = launcher.target(config.compute, config, job.step)
        store = config.store.root.expanduser().resolve()
        grace = training_grace if job is TrainJob else LEAST_SECONDS
        command = typical_command(job.step, config.compute, machine, store, grace)
        if text := launcher.preview(config.compute, config, command):
            say(text if is_known else f"{NOT_KNOWN_YET.format(step=job.step)}\n{text}")


def _jobs(config: StageConfig) -> Iterator[tuple[type[Job], bool]]:
    """The steps of a run in their order, and whether it is known that it has them."""
    conversions: dict[type[Job], bool] = {}
    for checkpoint in _checkpoints(config):
        for job, is_known in _conversions(checkpoint).items():
            conversions[job] = is_known or conversions.get(job, False)
    yield from conversions.items()
    always: list[type[Job]] = [
        RehearseJob,
        FetchJob,
        MixJob,
        *([ReferenceJob] if config.objective.needs_reference else []),
    ]
    always += [TrainJob, ExportJob, EvaluateJob, *([JudgeJob] if config.judge.is_on else [])]
    always += [*([BenchmarkJob] if config.benchmarks.tasks else []), AnswerJob]
    yield from ((job, True) for job in always)


def _checkpoints(config: StageConfig) -> Iterator[CheckpointConfig]:
    yield config.checkpoint
    if config.reference.source:
        yield CheckpointConfig(source=config.reference.source, revision=config.reference.revision)


def _conversions(checkpoint: CheckpointConfig) -> dict[type[Job], bool]:
    """The step that makes plain safetensors of the weights. One on the Hub is looked at once it is fetched."""
    if (folder := local_folder(checkpoint.source)) is None:
        return {ConvertJob: True} if checkpoint.gguf_file else {ConvertJob: False, DequantiseJob: False}
    try:
        kind = weights_in(folder, checkpoint).kind
    except CheckpointError:  # which the run says
        return {}
    if kind == "safetensors":
        return {}
    return {DequantiseJob if kind == "fp8" else ConvertJob: True}
