"""The exact argv and environment of a step."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dpo_core.contract.config import OptimConfig, TrainConfig
from dpo_core.contract.data_jobs import FetchJob, MixJob
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import AnswerJob, BatchPlan, EvaluateJob, ReferenceJob, TrainJob
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.refs import CheckpointRef, DatasetRef, ReferenceRef, ResolvedSource
from dpo_core.contract.tracking_config import TrackingConfig
from tasks.launch.command import accelerate_settings, inputs_of, nodes_of, step_command
from tasks.launch.compute import Machine
from tasks.launch.compute_config import ComputeConfig

CPU, GPUS = Machine(num_cores=8, num_gpus=0), Machine(num_cores=8, num_gpus=2)
CHECKPOINT = CheckpointRef(path="/c", fingerprint="c", tokenizer_fingerprint="t", source="org/m")
REFERENCE = ReferenceJob(
    data=DatasetRef(path="/d", fingerprint="d"), checkpoint=CHECKPOINT, cache_dir="/s/cache"
).at(Path("/s/reference/ab"))


def mix_job(**source) -> MixJob:
    return MixJob(
        sources=(ResolvedSource(label="a", content="x", **source),),
        tokenizer_path="/c",
        tokenizer_fingerprint="t",
        cache_dir="/s/cache",
    ).at(Path("/s/mix/ab"))


def test_the_argv_of_a_step_on_one_cpu_process():
    command = step_command(REFERENCE, ComputeConfig(), CPU, "python3")
    assert command.argv == (
        "python3",
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "/s/reference/ab/accelerate.json",
        "--num_machines",
        "1",
        "--num_processes",
        "1",
        "--num_cpu_threads_per_process",
        "8",
        "--dynamo_backend",
        "no",
        "-m",
        "dpo_core",
        "reference",
        "--job",
        "/s/reference/ab/job.json",
    )
    assert command.folder == Path("/s/reference/ab")
    assert command.env["OMP_NUM_THREADS"] == "8"
    assert command.env["ACCELERATE_USE_CPU"] == "true"
    on_card = step_command(REFERENCE, ComputeConfig(), Machine(num_cores=8, num_gpus=1), "python3").env
    assert (on_card["PYTORCH_ALLOC_CONF"], "ACCELERATE_USE_CPU" in on_card) == (
        "expandable_segments:True",
        False,
    )


@pytest.mark.parametrize(("own", "policy"), [(None, "passive"), ("active", "active")])
def test_threads_do_not_spin_while_they_wait_unless_told_to(monkeypatch, own, policy):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    assert step_command(REFERENCE, ComputeConfig(), CPU, "python3").env["OMP_WAIT_POLICY"] == policy


def test_several_processes_go_through_torchrun_on_any_free_port():
    command = step_command(REFERENCE, ComputeConfig(num_processes=2), CPU, "python3")
    joined = " ".join(command.argv)
    assert "--num_processes 2 --multi_gpu --main_process_port 0 --num_cpu_threads_per_process 4" in joined


def test_what_the_recipe_adds_reaches_the_step_and_wins():
    given = {"NCCL_SOCKET_IFNAME": "eth1", "HTTPS_PROXY": "http://proxy:3128", "OMP_NUM_THREADS": "3"}
    env = step_command(REFERENCE, ComputeConfig(env=given), CPU, "python3").env
    assert env.items() >= given.items()


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "my_password", "WANDB_API_KEY", "SSH_PRIVATE_KEY", "CLIENT_SECRET", "A B"]
)
def test_a_recipe_holds_no_secret_and_no_name_that_is_none(name):
    with pytest.raises(ValidationError, match=r"looks like a secret|is no name of a variable"):
        ComputeConfig(env={name: "x"})


def test_with_cards_nothing_forces_the_cpu():
    assert "ACCELERATE_USE_CPU" not in step_command(REFERENCE, ComputeConfig(), GPUS, "python3").env
    assert accelerate_settings(on_cpu=False)["use_cpu"] is False


def test_steps_that_share_out_no_tensors_stay_one_process():
    answer = AnswerJob(checkpoint_path="/c", files={}, prompts=("hi",)).at(Path("/s/answer/ab"))
    for job in (mix_job(), answer):
        assert "--num_processes 1 --num_cpu" in " ".join(
            step_command(job, ComputeConfig(num_processes=4), CPU, "p").argv
        )


def test_only_fetching_a_data_set_reaches_the_hub_and_sees_the_token():
    fetch = FetchJob(
        source=ResolvedSource(label="a", content="x", hub_id="org/set"), cache_dir="/s/cache"
    ).at(Path("/s/fetch/ab"))
    command = step_command(fetch, ComputeConfig(), CPU, "p")
    assert (command.secrets, command.needs_network, command.writable) == (
        ("HF_TOKEN",),
        True,
        (Path("/s/cache"),),
    )
    for job in (mix_job(hub_id="org/set"), mix_job(path="/x.jsonl"), REFERENCE):
        command = step_command(job, ComputeConfig(), CPU, "p")
        assert (command.secrets, command.needs_network) == ((), False)


def train_job(train: TrainConfig | None = None, tracking: TrackingConfig | None = None) -> TrainJob:
    return TrainJob(
        data=DatasetRef(path="/d", fingerprint="d"),
        checkpoint=CHECKPOINT,
        loss=LossConfig(),
        optim=OptimConfig(),
        train=train or TrainConfig(),
        tracking=tracking or TrackingConfig(),
        batch=BatchPlan(global_pairs=4, per_device_pairs=4, accumulation=1, num_processes=1),
    ).at(Path("/s/train/ab"))


def test_only_a_training_tracked_online_may_see_the_trackers_key():
    def command(**tracking):
        return step_command(train_job(tracking=TrackingConfig(**tracking)), ComputeConfig(), CPU, "p")

    online = command(trackers=("wandb",), wandb_mode="online")
    assert (online.secrets, online.needs_network) == (("WANDB_API_KEY",), True)
    for quiet in (
        command(),
        command(trackers=("wandb",)),
        command(trackers=("tensorboard",), wandb_mode="online"),
    ):
        assert (quiet.secrets, quiet.needs_network) == ((), False)


def test_a_step_compiles_where_its_recipe_says_so():
    def compiles(**train) -> bool:
        return step_command(train_job(train=TrainConfig(**train)), ComputeConfig(), CPU, "p").compiles

    assert (compiles(), compiles(compile_regions=True), compiles(attention="flex_attention")) == (
        False,
        True,
        True,
    )
    flex = REFERENCE.model_copy(update={"attention": "flex_attention"})
    assert [step_command(job, ComputeConfig(), CPU, "p").compiles for job in (REFERENCE, flex)] == [
        False,
        True,
    ]


def test_a_step_reads_what_its_job_names_and_writes_to_its_folder_and_the_cache():
    command = step_command(REFERENCE, ComputeConfig(), CPU, "p")
    assert command.inputs == (Path("/c"), Path("/d"))
    assert command.writable == (Path("/s/cache"),)
    assert (command.step, command.job_fingerprint) == ("reference", REFERENCE.fingerprint)
    assert (
        step_command(
            AnswerJob(checkpoint_path="/c", files={}, prompts=("x",)).at(Path("/s/a")),
            ComputeConfig(),
            CPU,
            "p",
        ).writable
        == ()
    )


def test_inputs_are_found_wherever_a_job_holds_them_and_named_once():
    inside = CHECKPOINT.model_copy(update={"path": Path("/d/inside")})
    job = EvaluateJob(
        data=DatasetRef(path="/d", fingerprint="d"),
        before=CHECKPOINT,
        after=inside,
        reference=ReferenceRef(path="/r", fingerprint="r"),
        reference_checkpoint=CHECKPOINT,
        loss=LossConfig(),
        evaluation=EvaluationConfig(),
    ).at(Path("/s/e"))
    assert inputs_of(job) == (Path("/c"), Path("/d"), Path("/r"))
    assert inputs_of(mix_job(path="/x.jsonl")) == (Path("/c"), Path("/x.jsonl"))


def test_nodes_get_the_same_command_but_for_their_rank():
    compute = ComputeConfig(launcher="docker", machines=2, num_processes=4, join_timeout_seconds=60)
    nodes = nodes_of(REFERENCE, compute)
    first, second = (step_command(REFERENCE, compute, CPU, "p", node).argv for node in nodes)
    assert (
        " ".join(first).count(
            "--num_machines 2 --num_processes 4 --multi_gpu --machine_rank 0 --main_process_ip node-0 "
            "--main_process_port 29500 --rdzv_backend static --rdzv_conf timeout=60"
        )
        == 1
    )
    assert [(a, b) for a, b in zip(first, second, strict=True) if a != b] == [("0", "1")]
    assert len(nodes_of(mix_job(path="/x"), compute)) == 1
