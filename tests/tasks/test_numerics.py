"""The model is computed before and behind the training as in it: by the same code, in the same precision."""

import pytest

from dpo_core.contract.config import ReferenceConfig, TrainConfig
from dpo_core.contract.data_jobs import MixResult
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import EvaluateJob, ExportResult, ReferenceJob
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.refs import CheckpointRef, DatasetRef
from tasks.cache_reference import reference_job
from tasks.evaluate import evaluate_job
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.process import ProcessLauncher
from tasks.launch.workplace import Workplace
from tasks.train_dpo import TrainingInputs

ASKED = {
    "precision": "bf16",
    "implementation": "olmo_core",
    "float8": "rowwise",
    "forward": "padded",
    "attention": "eager",
}


@pytest.fixture
def jobs(tmp_path) -> list[ReferenceJob | EvaluateJob]:
    """Those of a run whose training is asked for as ``ASKED``."""
    train = TrainConfig.model_validate(ASKED)
    sft = CheckpointRef(path=tmp_path, source="sft", fingerprint="a", tokenizer_fingerprint="b")
    mixture = MixResult.model_construct(data=DatasetRef(path=tmp_path, fingerprint="c"))
    named = {"fingerprint": "d", "tokenizer_fingerprint": "b", "job_fingerprint": "e"}
    export = ExportResult(path=tmp_path, files={}, **named)
    place = Workplace(tmp_path, ProcessLauncher(ComputeConfig(sharding="fsdp2")))
    inputs = TrainingInputs(sft, mixture, None, None)
    return [
        reference_job(ReferenceConfig(), train, sft, "full", mixture, place),
        evaluate_job(inputs, export, LossConfig(), train, EvaluationConfig(), place),
    ]


@pytest.mark.parametrize("setting", ASKED)
def test_reference_pass_and_evaluation_compute_as_the_training(jobs, setting):
    default = TrainConfig.model_fields[setting].default
    for job in jobs:
        assert getattr(job, setting) == ASKED[setting] != default


def test_they_are_shared_out_as_the_training(jobs):
    assert [job.sharding.kind for job in jobs] == ["fsdp2", "fsdp2"]
