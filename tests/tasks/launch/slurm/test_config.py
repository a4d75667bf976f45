"""The section ``slurm``: what it refuses, and what it says of a step's node."""

from typing import get_args

import pytest
from pydantic import ValidationError

from dpo_core.contract.job_registry import JOBS
from flows.settings.stage_config import StageConfig
from tasks.launch.slurm.config import OURS, LocalStep, SlurmConfig
from tasks.launch.slurm.launcher import SlurmLauncher


@pytest.mark.parametrize("name", OURS)
def test_a_flag_that_is_ours_is_refused_also_by_its_beginning(name: str):
    for flag in (f"--{name}=1", f"--{name[:-1]}=1" if len(name) > 3 else f"--{name}"):
        with pytest.raises(ValidationError, match="is Pairline's own to set"):
            SlurmConfig(flags=(flag,))


def test_a_refused_flag_names_the_setting_that_is_meant():
    with pytest.raises(ValidationError, match=r"--gres=gpu:8 is Pairline's own .* set slurm\.gpus_per_node"):
        SlurmConfig(flags=("--gres=gpu:8",))


@pytest.mark.parametrize(
    "flag", ["-N4", "-p", "reservation=x", "--reservation x\n", "--", "--Nodes=1", "; rm x"]
)
def test_what_is_no_long_flag_is_refused(flag: str):
    with pytest.raises(ValidationError, match="is no long flag of sbatch"):
        SlurmConfig(flags=(flag,))


def test_other_flags_pass():
    flags = (
        "--reservation=align",
        "--exclude=n[7-9]",
        "--exclusive",
        "--mail-type=FAIL",
        "--switches=1@12:00:00",
    )
    assert SlurmConfig(flags=flags).flags == flags


@pytest.mark.parametrize(
    "wrong",
    [
        {"partition": "a b"},
        {"partition": "x;y"},
        {"gpus_per_node": "0"},
        {"gpus_per_node": "h100:"},
        {"gpus_per_node": ":8"},
        {"gpus_per_node": "1g.10gb"},
        {"flags": ("--clusters=other",)},
        {"gpus_per_node": "gpu:h100:8"},
        {"constraint": "a b"},
        {"partitions": {"trains": "gpu"}},
        {"partitions": {"train": ""}},
        {"partitions": {"train": "a,b c"}},
        {"setup": ("module load a\nrm b",)},
        {"setup": (" ",)},
        {"cpus_per_node": 0},
        {"on_this_machine": ("train",)},
    ],
)
def test_what_sbatch_would_misread_is_refused(wrong: dict):
    with pytest.raises(ValidationError):
        SlurmConfig(**wrong)


def test_whatever_one_process_does_may_stay_on_this_machine():
    assert set(get_args(LocalStep)) == {step for step, job in JOBS.items() if not job.is_parallel}


def test_types_of_cards_are_those_that_sites_name():
    for typed in ("h100:8", "a100_80gb:4", "nvidia_h100_80gb_hbm3:8", "3090:8", "2080ti:10", "1g.10gb:7"):
        slurm = SlurmConfig(gpus_per_node=typed)
        assert slurm.num_gpus("train") == int(typed.partition(":")[2])


def test_steps_of_the_model_ask_for_cards_and_the_others_for_none():
    slurm = SlurmConfig(gpus_per_node="h100:8", partition="gpu", partitions={"mix": "cpu"})
    cards = {step: slurm.num_gpus(step) for step in JOBS}
    of_the_model = {"reference", "train", "evaluate", "judge", "benchmark", "answer"}
    assert {step for step, number in cards.items() if number == 8} == of_the_model
    assert {step for step, number in cards.items() if number == 0} == set(JOBS) - of_the_model
    assert (slurm.partition_of("mix"), slurm.partition_of("train")) == ("cpu", "gpu")
    assert SlurmConfig().num_gpus("train") == 0


def test_a_judge_that_only_asks_a_server_books_no_card():
    asking = {"judge": {"kind": "endpoint", "model": "m", "endpoint": "http://judge/v1"}}
    computing = {"judge": {"kind": "reward_model", "model": "org/m"}}
    slurm = {"gpus_per_node": "8", "partition": "gpu", "partitions": {"mix": "cpu"}}
    recipe = {"checkpoint": {"source": "a"}, "data": {"sources": [{"source": "b"}]}, "slurm": slurm}
    by_server, by_model = StageConfig(**recipe, **asking), StageConfig(**recipe, **computing)
    told = by_server.slurm_of_steps
    assert (told.num_gpus("judge"), told.partition_of("judge")) == (0, "cpu")
    assert (told.num_gpus("train"), told.partition_of("train")) == (8, "gpu")
    assert (by_model.slurm_of_steps.num_gpus("judge"), by_model.slurm_of_steps.partition_of("judge")) == (
        8,
        "gpu",
    )
    own = StageConfig(
        **{**recipe, "slurm": {**slurm, "partitions": {"mix": "cpu", "judge": "web"}}}, **asking
    )
    assert own.slurm_of_steps.partition_of("judge") == "web"
    launcher = SlurmLauncher.of(by_server.compute, by_server, None)
    assert launcher.slurm.num_gpus("judge") == 0
    assert SlurmLauncher.target(by_server.compute, by_server, "judge").num_gpus == 0
    assert by_server.slurm == by_model.slurm  # a recipe is what was written


@pytest.mark.parametrize(
    ("kind", "image", "words"),
    [
        ("none", "sha256:" + "a" * 64, "slurm.container none runs in no image"),
        ("docker", "", "no id and no digest"),
        ("docker", "trainer:latest", "no id and no digest"),
        ("pyxis", "trainer.sqsh", "--sqsh /shared/trainer.sqsh"),
        ("apptainer", "docker://trainer", "--sif /shared/trainer.sif"),
    ],
)
def test_a_container_needs_an_image_that_stays_what_it_is(kind: str, image: str, words: str):
    with pytest.raises(ValidationError, match=words):
        SlurmConfig(container=kind, image=image)
