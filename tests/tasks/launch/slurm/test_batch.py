"""A step as flags and a script: pure data, so that every line can be looked at."""

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_core.contract.errors import ConfigError
from tasks.launch.compute import Machine
from tasks.launch.context import RunName
from tasks.launch.launcher import CommandSpec, Node
from tasks.launch.slurm.batch import Submission, batch_job
from tasks.launch.slurm.config import SlurmConfig

FOLDER = Path("/shared/it's 100%/train/0123456789abcdef")
COMMAND = CommandSpec(
    ("/shared/python", "-m", "accelerate.commands.launch", "..."),
    FOLDER,
    3600.0,
    program=("-m", "dpo_core", "train", "--job", str(FOLDER / "job.json")),
    num_processes=8,
    node=Node(0, 2),
    step="train",
    job_fingerprint="0123456789abcdef" * 4,
    stop_grace_seconds=90,
)
SUBMISSION = Submission("abc123", FOLDER.parent / "own/slurm", {"WANDB_API_KEY": Path("/own/secret-W")})
MACHINE = Machine(num_cores=96, num_gpus=8, memory_bytes=3 << 29)  # what the recipe asks for, if it does


DEFAULTS = SlurmConfig()


def job(slurm: SlurmConfig = DEFAULTS, command: CommandSpec = COMMAND):
    return batch_job(
        command, slurm, MACHINE, SUBMISSION, RunName("run", "id"), {"OMP_NUM_THREADS": "4; rm x"}
    )


def test_the_flags_ask_for_what_the_step_needs_and_no_more():
    slurm = SlurmConfig(
        partition="gpu",
        account="llm",
        qos="high",
        constraint="h100&ib",
        gpus_per_node="h100:8",
        memory_gib=1.5,
        time_limit_minutes=720,
        flags=("--reservation=align",),
    )
    flags = job(slurm).flags
    for flag in (
        *("--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=24", "--gpus-per-node=h100:4"),
        *(
            "--partition=gpu",
            "--account=llm",
            "--qos=high",
            "--constraint=h100&ib",
            "--mem=1536M",
            "--time=720",
        ),
        *("--export=ALL", "--dependency=singleton", "--requeue", "--open-mode=append", "--signal=TERM@120"),
        *(
            "--reservation=align",
            "--output=/shared/it's 100%%/train/own/slurm/abc123.log",
            f"--chdir={FOLDER}",
        ),
    ):
        assert flag in flags


def test_what_is_left_empty_is_the_clusters_own():
    names = {flag.partition("=")[0] for flag in job().flags}
    assert not names & {
        "--partition",
        "--account",
        "--qos",
        "--constraint",
        "--gpus-per-node",
        "--mem",
        "--time",
    }


def test_the_comment_says_whose_it_is_and_is_read_back():
    comment = next(flag for flag in job().flags if flag.startswith("--comment=")).partition("=")[2]
    told = json.loads(comment)
    assert (told["job"], told["folder"], told["key"]) == (COMMAND.job_fingerprint, str(FOLDER), "abc123")
    assert (told["flow_run"], told["grace"]) == ("id", 90)


def test_the_script_is_shell_whatever_names_hold():
    script = job(SlurmConfig(setup=("module load 'cuda' && x=1",))).script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "export OMP_NUM_THREADS='4; rm x'" in script
    assert f"record={shlex.quote(str(SUBMISSION.record))}" in script
    assert "export WANDB_API_KEY" not in script
    assert "unset SLURM_EXPORT_ENV" in script
    assert script.index("/etc/profile") < script.index("trap : TERM") < script.index("export OMP_NUM_THREADS")
    assert "--kill-on-bad-exit=1 --label" in script


def test_a_start_that_comes_after_its_successor_begins_nothing(tmp_path):
    """A node that was too slow to tell that it had begun: Slurm has started the job again meanwhile."""
    submission = Submission("abc123", tmp_path, {})
    late = batch_job(COMMAND, DEFAULTS, MACHINE, submission, RunName(), {}).script
    for written, expected in (
        ("abc123.2", 75),
        ("abc123.0", 13),
        ("other.2", 13),
        ("", 13),
    ):  # 13: there is no store
        (tmp_path / "attempt").write_text(f"{written}\n")
        environment = {"HOME": "/nowhere", "PATH": "/usr/bin:/bin", "SLURM_RESTART_COUNT": "1"}
        done = subprocess.run(
            ["bash"], input=late, text=True, env=environment, capture_output=True, check=False
        )
        assert done.returncode == expected, done
        began = (tmp_path / "attempt").read_text().strip() == "abc123.1"
        assert began == (expected == 13)


def test_one_process_has_no_label_before_its_lines():
    assert (
        "--label"
        not in job(command=CommandSpec(("p",), FOLDER, 1.0, program=("x", "job"), step="mix")).script
    )


def test_a_time_limit_that_is_shorter_than_a_checkpoint_is_one_sentence():
    with pytest.raises(
        ConfigError, match=r"slurm\.time_limit_minutes is 2, .* needs 120 s .*Set it to 3 or more"
    ):
        job(SlurmConfig(time_limit_minutes=2))
    assert "--time=3" in job(SlurmConfig(time_limit_minutes=3)).flags


def test_a_partition_whose_jobs_are_short_is_one_sentence_too_and_no_obstacle_without_a_checkpoint():
    """SIGTERM that long before the end would come as the job begins."""
    short, long = (Submission("abc123", FOLDER, {}, limit_minutes=minutes) for minutes in (2, 3))

    def flags(step: str, submission: Submission, slurm: SlurmConfig = DEFAULTS) -> tuple[str, ...]:
        return batch_job(replace(COMMAND, step=step), slurm, MACHINE, submission, RunName(), {}).flags

    with pytest.raises(ConfigError, match=r"is empty, and its partition's limit is 2, .*Set it to 3 or more"):
        flags("train", short)
    assert "--signal=TERM@120" in flags("train", long)
    assert not any(flag.startswith("--time") for flag in flags("train", long))
    for submission, slurm in ((short, DEFAULTS), (long, SlurmConfig(time_limit_minutes=2))):
        assert not any(flag.startswith("--signal") for flag in flags("mix", submission, slurm))
