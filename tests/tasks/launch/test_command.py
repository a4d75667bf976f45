"""The exact argv and environment of a step."""

from pathlib import Path

from dpo_core.config import ComputeConfig
from dpo_core.jobs import AnswerJob, CheckpointRef, DatasetRef, MixJob, ReferenceJob, ResolvedSource
from tasks.launch.command import accelerate_settings, step_command
from tasks.launch.compute import Machine

CPU, GPUS = Machine(num_cores=8, num_gpus=0), Machine(num_cores=8, num_gpus=2)
CHECKPOINT = CheckpointRef(path="/c", fingerprint="c", tokenizer_fingerprint="t", source="org/m")
REFERENCE = ReferenceJob(out_dir=Path("/s/reference/ab"), data=DatasetRef(path="/d", fingerprint="d"),
                         checkpoint=CHECKPOINT, cache_dir="/s/cache")


def mix_job(**source) -> MixJob:
    return MixJob(out_dir="/s/mix/ab", sources=(ResolvedSource(label="a", content="x", **source),), tokenizer_path="/c",
                  tokenizer_fingerprint="t", cache_dir="/s/cache")


def test_the_argv_of_a_step_on_one_cpu_process():
    command = step_command(REFERENCE, ComputeConfig(), CPU, "python3")
    assert command.argv == (
        "python3", "-m", "accelerate.commands.launch", "--config_file", "/s/reference/ab/accelerate.json",
        "--num_machines", "1", "--num_processes", "1", "--num_cpu_threads_per_process", "8", "--dynamo_backend", "no",
        "-m", "dpo_core", "reference", "--job", "/s/reference/ab/job.json")
    assert command.folder == Path("/s/reference/ab")
    assert command.env["OMP_NUM_THREADS"] == "8"
    assert command.env["ACCELERATE_USE_CPU"] == "true"


def test_several_processes_go_through_torchrun_on_any_free_port():
    command = step_command(REFERENCE, ComputeConfig(num_processes=2), CPU, "python3")
    joined = " ".join(command.argv)
    assert "--num_processes 2 --multi_gpu --main_process_port 0 --num_cpu_threads_per_process 4" in joined


def test_with_cards_nothing_forces_the_cpu():
    assert "ACCELERATE_USE_CPU" not in step_command(REFERENCE, ComputeConfig(), GPUS, "python3").env
    assert accelerate_settings(on_cpu=False)["use_cpu"] is False


def test_steps_that_share_out_no_tensors_stay_one_process():
    answer = AnswerJob(out_dir="/s/answer/ab", checkpoint_path="/c", files={}, prompts=("hi",))
    for job in (mix_job(), answer):
        assert "--num_processes 1 --num_cpu" in " ".join(step_command(job, ComputeConfig(num_processes=4), CPU, "p").argv)


def test_only_a_mixture_from_the_hub_may_see_the_token():
    assert step_command(mix_job(hub_id="org/set"), ComputeConfig(), CPU, "p").secrets == ("HF_TOKEN",)
    assert step_command(mix_job(path="/x.jsonl"), ComputeConfig(), CPU, "p").secrets == ()
    assert step_command(REFERENCE, ComputeConfig(), CPU, "p").secrets == ()
