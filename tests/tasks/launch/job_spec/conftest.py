"""A training in a store on a shared volume, described for other engines."""

from pathlib import Path

import pytest

from dpo_core.contract.config import OptimConfig, TrainConfig
from dpo_core.contract.jobs import BatchPlan, TrainJob
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.refs import CheckpointRef, DatasetRef
from dpo_core.contract.tracking_config import TrackingConfig
from tasks.image.image_ref import PYTHON
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.job_spec.step_description import Asked
from tasks.launch.launcher import StepImage

IMAGE = StepImage(f"registry.example.org/team/pairline-trainer@sha256:{'ab' * 32}", PYTHON)
COMPUTE = ComputeConfig(
    num_processes=16, sharding="zero3", stop_grace_seconds=90, env={"NCCL_DEBUG": "costs $(1) or $2"}
)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "it's shared"


@pytest.fixture
def training(volume: Path) -> Asked:
    """Of 16 processes, tracked online."""
    job = TrainJob(
        data=DatasetRef(path=volume / "store/mix/1/mixture", fingerprint="d"),
        checkpoint=CheckpointRef(
            path=volume / "store/checkpoints/c", fingerprint="c", tokenizer_fingerprint="t", source="org/m"
        ),
        loss=LossConfig(),
        optim=OptimConfig(),
        train=TrainConfig(global_batch_pairs=16),
        batch=BatchPlan(global_pairs=16, per_device_pairs=1, accumulation=1, num_processes=16),
        tracking=TrackingConfig(trackers=("wandb",), wandb_mode="online"),
    ).at(volume / "store/train/ab")
    job.write()
    return Asked("train", job, volume / "store")
