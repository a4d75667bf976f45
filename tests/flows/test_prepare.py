"""Prepared on one host, run on another: by a shared store, or by a bundle, whose odd forms are in
``tests/tasks/run/test_bundle.py``."""

import json
import re
from pathlib import Path

import pytest
import yaml

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.job import Job
from dpo_core.contract.job_registry import read_job
from flows.settings.overrides import read_recipe
from flows.terminal.job_spec_command import spec_text
from tasks.launch.job_spec.config import KubernetesConfig
from tests.flows.conftest import last_run, launches, pairline
from tests.prefect_database import new_prefect_home
from tests.tiny_models import CHATML
from tests.tiny_stage import tiny_values

pytestmark = pytest.mark.integration


@pytest.fixture
def recipe(tiny_inputs: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_values(tiny_inputs, tmp_path / "store", train={"max_steps": 1})))
    new_prefect_home(tmp_path / "store" / "prefect")
    return path


ENGINE = {"image.use": f"registry.example.org/trainer@sha256:{'ab' * 32}"}


def on_cluster(volume: Path) -> KubernetesConfig:
    return KubernetesConfig(namespace="n", volume_claim="v", mount_path=volume, cpus_per_node=1, memory_gib=1)


def next_job(stdout: str) -> Job:
    """The job that `prepare` wrote down for whatever runs it."""
    (folder,) = re.findall(r"(?m)^next: (\S+)", stdout)
    return read_job(Path(folder) / "job.json")


def test_a_run_finds_what_was_prepared_in_its_store(recipe, tmp_path):
    values, template = yaml.safe_load(recipe.read_text()), tmp_path / "mine.jinja"
    template.write_text(CHATML)
    values["checkpoint"]["chat_template"] = str(template)
    recipe.write_text(yaml.safe_dump(values))
    # More cards than there are: the host that prepares the data need not be the trainer's.
    prepared = pairline("prepare", str(recipe), "--set", "compute.num_processes=64")
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    store = tmp_path / "store"
    _, record = last_run(store)
    assert (record.name, record.state) == ("tiny-prepared", "completed")
    assert launches(store).keys() >= {"mix"}
    assert not launches(store).keys() & {"reference", "train"}
    assert next_job(prepared.stdout).step == "reference"

    run = pairline("run", str(recipe))
    assert run.returncode == 0, run.stdout + run.stderr
    assert launches(store)["mix"] == 1
    assert launches(store)["train"] == 1
    # What a template's file held when the run began is what its folder tells, whatever becomes of it.
    template.unlink()
    folder, _ = last_run(store)
    assert json.loads((folder / "config.json").read_text())["checkpoint"]["chat_template"] == CHATML
    exported = pairline("export", "--store", str(store), "--out", str(tmp_path / "out"))
    assert exported.returncode == 0, exported.stdout + exported.stderr
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHATML


def test_a_model_that_cannot_be_computed_as_asked_is_refused_once_it_is_there(recipe, tmp_path):
    """Of a model from the Hub nothing is known before; cards that it is computed on need not be here."""
    together = ("num_processes=4", "sharding=fsdp2", "tensor_degree=4")
    refused = pairline("prepare", str(recipe), *(f"--set=compute.{one}" for one in together))
    assert refused.returncode == ConfigError.exit_code, refused.stdout + refused.stderr
    assert "its num_key_value_heads is 2" in " ".join((refused.stdout + refused.stderr).split())
    assert not launches(tmp_path / "store").keys() & {"rehearse", "mix"}


def test_the_reference_pass_is_prepared_where_it_is_asked_for(recipe, tmp_path):
    bundle = tmp_path / "bundle.tar"
    prepared = pairline("prepare", str(recipe), "--reference", "--export", str(bundle))
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    assert "(2 results)" in prepared.stdout
    training = next_job(prepared.stdout)
    assert training.step == "train"
    config = read_recipe(recipe, [f"{name}={value}" for name, value in ENGINE.items()])
    text = spec_text(
        config.model_copy(update={"kubernetes": on_cluster(tmp_path)}),
        "kubernetes",
        "train",
        training.out_dir,
    )
    assert str(training.out_dir / "job.json") in text
    with pytest.raises(ConfigError, match="another loss than the recipe's"):
        spec_text(read_recipe(recipe, ["loss.beta=0.7"]), "kubernetes", "train", training.out_dir)
    other = tmp_path / "other"
    new_prefect_home(other / "prefect")
    run = pairline("run", str(recipe), "--set", f"store.root={other}", "--from", str(bundle))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "bundle: reference is in" in run.stdout
    assert not launches(other).keys() & {"mix", "reference"}
    assert launches(other)["train"] == 1
