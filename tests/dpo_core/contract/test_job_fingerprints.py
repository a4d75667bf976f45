"""Fingerprints name folders in stores that people have: values written down once, which no tidying up may change."""

import pytest

from dpo_core.contract.benchmark_job import BenchmarkJob, TaskFolder
from dpo_core.contract.config import AdapterConfig, OptimConfig, TrainConfig
from dpo_core.contract.data_jobs import ConvertJob, FetchJob, MixJob
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.job import Job
from dpo_core.contract.jobs import (
    AnswerJob,
    BatchPlan,
    EvaluateJob,
    ExportJob,
    ReferenceJob,
    Sharding,
    TrainJob,
)
from dpo_core.contract.judge_job import EndpointJudge, JudgeJob, RewardModelJudge
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.refs import CheckpointRef, DatasetRef, ReferenceRef, ResolvedSource

SFT = CheckpointRef(
    path="/s/checkpoints/a",
    fingerprint="a" * 64,
    tokenizer_fingerprint="b" * 64,
    source="org/sft",
    revision="abc",
    files={"model.safetensors": "c" * 64},
    allow_remote_code=True,
)
DPO = CheckpointRef(
    path="/s/export/b", fingerprint="d" * 64, tokenizer_fingerprint="b" * 64, source="/s/export/b"
)
DATA = DatasetRef(path="/s/mix/c/data", fingerprint="e" * 64, files={"train/a": "f" * 64})
REFERENCE = ReferenceRef(path="/s/reference/d", fingerprint="1" * 64)
SOURCE = ResolvedSource(
    label="set",
    hub_id="org/set",
    commit="2" * 40,
    content="org/set@" + "2" * 40,
    subset="a",
    amount="0.5",
    columns={"chosen": "winner"},
)
LOSS = LossConfig(name="dpo", beta=0.1, label_smoothing=0.1)
JOBS: dict[str, tuple[type[Job], dict, str]] = {
    "convert a GGUF": (
        ConvertJob,
        {"source_dir": "/models", "source_sha256": "3" * 64, "gguf_file": "a.gguf"},
        "d700d033a0427b3af5ee0d096d3f24ffc3b98139c9eb1523f4f9a7d0cd2c507f",
    ),
    "convert a pickle": (
        ConvertJob,
        {"source_dir": "/models", "source_sha256": "3" * 64, "pickle_files": ("a.bin",)},
        "4a59cc631897cb992884acb332d0b2a0deb09fc0ade52201dcece7e276e2d38d",
    ),
    "fetch": (
        FetchJob,
        {"source": SOURCE, "cache_dir": "/s/cache"},
        "7da419e1802dacbc932fe90eca576667f78a6b46e07a43b491849a305c4b0994",
    ),
    "mix": (
        MixJob,
        {
            "sources": (SOURCE,),
            "tokenizer_path": "/s/checkpoints/a",
            "tokenizer_fingerprint": "b" * 64,
            "chat_template": "tulu",
            "held_out": "64",
            "seed": 3,
            "cache_dir": "/s/cache",
        },
        "e7e39bc7e376b3f0e399bf4c4fa7927f135761811fdfbf0d0d13202b5b2aad57",
    ),
    "reference": (
        ReferenceJob,
        {
            "data": DATA,
            "checkpoint": SFT,
            "precision": "bf16",
            "forward": "padded",
            "sharding": Sharding(kind="zero3"),
            "cache_dir": "/s/reference-rows",
        },
        "0af041846e5a9b263ced30f94f39ffa2cf1c9459c73dd57acfcaa0991ccbb134",
    ),
    "train": (
        TrainJob,
        {
            "data": DATA,
            "checkpoint": SFT,
            "reference": REFERENCE,
            "reference_checkpoint": SFT,
            "loss": LOSS,
            "optim": OptimConfig(learning_rate=1e-5),
            "train": TrainConfig(num_epochs=2, precision="bf16"),
            "adapter": AdapterConfig(kind="lora", rank=8),
            "batch": BatchPlan(global_pairs=8, per_device_pairs=2, accumulation=2, num_processes=2),
        },
        "869ce8e6b7a343dd4cb44e586d26b3f7b9d27061714bdcb00a8165f463429c9a",
    ),
    "export": (
        ExportJob,
        {
            "weights_path": "/s/train/e/weights",
            "weights_fingerprint": "4" * 64,
            "checkpoint": SFT,
            "chat_template": "tulu",
            "precision": "fp32",
        },
        "45963b66bde7721881411aa7e04498ea1d1ef9004fb278d15068fc02fc118ced",
    ),
    "evaluate": (
        EvaluateJob,
        {
            "data": DATA,
            "reference": REFERENCE,
            "reference_checkpoint": SFT,
            "before": SFT,
            "after": DPO,
            "loss": LOSS,
            "evaluation": EvaluationConfig(num_prompts=4),
        },
        "f0a4045573490a6184f3f7404209e2af693c0b5d29ff6077519c104838409342",
    ),
    "benchmark": (
        BenchmarkJob,
        {
            "checkpoint": SFT,
            "template": "tulu",
            "tasks": ("gsm8k", "mine"),
            "folders": (TaskFolder(path="/tasks", content="5" * 64),),
            "limit": 100,
            "batch_size": 8,
            "cache_dir": "/s/benchmark-scores",
        },
        "9ac48b6688ce53c61fe5cdda7eae3b32e04c0e924b44f6fe900689ddd94d9e4b",
    ),
    "judge by a reward model": (
        JudgeJob,
        {
            "judge": RewardModelJudge(checkpoint=SFT, max_length_tokens=512, tokens_per_batch=64),
            "tie_band": 0.01,
            "answers_file": "/s/evaluate/a/result.json",
            "answers_content": "6" * 64,
            "cache_dir": "/s/judge-words",
        },
        "df985189f3498fca3dc788bde6001acad135aa239b4a7d1f0075dabd75f112c7",
    ),
    "judge by an endpoint": (
        JudgeJob,
        {
            "judge": EndpointJudge(
                url="http://host/v1",
                model="m",
                question="{prompt} {first} {second}",
                parameters={"seed": 1},
                concurrency=2,
                has_key=True,
            ),
            "answers_file": "/s/evaluate/a/result.json",
            "answers_content": "6" * 64,
            "cache_dir": "/s/judge-words",
        },
        "ef1ec9c7d34ef8b2296f9737f14748209af672b6ed3fd5619d010c68b8186802",
    ),
    "answer": (
        AnswerJob,
        {
            "checkpoint_path": "/s/published/a",
            "files": {"model.safetensors": "c" * 64},
            "prompts": ("Hello?",),
        },
        "226a3107a5409e3b44880d4406a6170fcbbed2d1d2086129f8a44b49d5683cf9",
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_of_an_earlier_version_is_found_again(name: str):
    kind, fields, expected = JOBS[name]
    assert kind(**fields).fingerprint == expected
