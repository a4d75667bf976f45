"""What a run refuses before anything is fetched or booked; a plan asks the same. Needs neither Prefect nor a network."""

import sys

from dpo_core.contract.compiled_regions import check_compiled_regions
from dpo_core.contract.cuda8bit import check_cuda8bit
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.float8 import check_float8_card
from dpo_core.contract.gpu_attention import check_gpu_attention
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.tracking_config import check_trackers
from flows.benchmark_software import check_benchmarks
from flows.implementation import check_implementation
from flows.settings.stage_config import StageConfig
from flows.step_software import missing_in, python_of_steps
from tasks.checkpoint.chosen_template import chosen_template
from tasks.checkpoint.source import check_source
from tasks.data.sources import check_sources
from tasks.hub.judge_server import is_on_loopback
from tasks.image.config import check_variant
from tasks.launch.compute import check_devices, newest_card, solve_batch
from tasks.launch.launcher import kind_of


def check_before_start(config: StageConfig) -> None:
    """Raise ``ConfigError``, ``DataError``, ``CheckpointError`` for what cannot work on the machine of the training."""
    check_inputs(config)
    launcher = kind_of(config.compute)
    machine = launcher.target(config.compute, config, TrainJob.step)
    check_devices(config.compute, machine)
    check_cuda8bit(config.adapter, config.optim, machine.num_gpus)
    check_gpu_attention(config.train.attention, machine.num_gpus)
    if config.train.compile_regions:
        is_here = config.compute.launcher == "process" and "CC" not in config.compute.env
        check_compiled_regions(config.compute.sharding, machine.num_gpus, is_here)
    check_implementation(config)
    if config.train.float8 != "none" and machine.num_gpus and config.compute.launcher != "slurm":
        newest = newest_card()  # a cluster's are seen by the first step
        if newest is not None:
            check_float8_card(*newest)
    check_benchmarks(config)
    if launcher.runs_in_image:
        check_variant(config.image, machine)
    check_installed_trackers(config)
    solve_batch(
        config.train.global_batch_pairs,
        config.train.per_device_batch_pairs,
        config.compute.num_processes,
        config.compute.tensor_degree,
    )


def check_installed_trackers(config: StageConfig) -> None:
    """Raise ``ConfigError`` for a tracker that the training's Python lacks, if it can be asked from here; an image has its
    own packages, and the step in it looks for itself."""
    python, names = python_of_steps(config), config.tracking.trackers
    if not names or python is None or python.why_not:
        return
    if python.path == sys.executable:
        check_trackers(config.tracking)
    else:
        check_trackers(config.tracking, [*missing_in(python.path, names)])


def _check_reached_from_a_container(config: StageConfig) -> None:
    if is_on_loopback(config.judge):
        raise ConfigError(
            f"judge.endpoint is {config.judge.endpoint}, and the step runs in a container, whose loopback is its own.",
            "Have the server listen on an address of this machine and name that, or set compute.launcher to process.",
        )


def check_inputs(config: StageConfig) -> None:
    """Raise ``DataError``, ``CheckpointError`` for data, checkpoints and templates that are not there."""
    check_sources(config.data.sources)
    check_sources(config.quality.evaluation_sets, "quality.evaluation_sets")
    check_sources(config.evaluation.sets, "evaluation.sets")
    for source in (config.checkpoint.source, config.reference.source):
        if source is not None:
            check_source(source)
    if config.checkpoint.tokenizer is not None:
        check_source(config.checkpoint.tokenizer, "checkpoint.tokenizer")
    if config.judge.kind == "endpoint" and kind_of(config.compute).runs_in_image:
        _check_reached_from_a_container(config)
    if config.judge.kind == "reward_model":
        check_source(config.judge.model, "judge.model")
    chosen_template(config.checkpoint)
