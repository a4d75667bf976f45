"""What is refused before anything is fetched or booked."""

import pytest

from dpo_core.contract.errors import ConfigError
from flows.before_start import check_before_start
from flows.settings.overrides import read_recipe
from tasks.image.trainer_image import CHECKOUT
from tasks.launch.compute import Machine

RECIPE = CHECKOUT / "recipes/quickstart.yaml"


def test_an_image_without_cuda_is_refused_on_a_machine_with_gpus(monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    one_card = Machine(num_cores=8, num_gpus=1)
    monkeypatch.setattr("tasks.launch.docker.launcher.this_machine", lambda: one_card)
    monkeypatch.setattr("tasks.launch.process.this_machine", lambda: one_card)
    with pytest.raises(ConfigError, match=r"Set image\.variant to cuda"):
        check_before_start(read_recipe(RECIPE, ["compute.launcher=docker"]))
    check_before_start(read_recipe(RECIPE, ["compute.launcher=docker", "image.variant=cuda"]))
    check_before_start(read_recipe(RECIPE, ["compute.launcher=process"]))  # which has what is installed here


def test_norms_that_cannot_be_compiled_are_refused_before_the_reference_pass(monkeypatch):
    """The training looks, too, but by then the reference pass is paid for."""
    monkeypatch.chdir(CHECKOUT)
    monkeypatch.setattr("tasks.launch.process.this_machine", lambda: Machine(num_cores=8, num_gpus=1))
    compiled = ["train.compile_regions=true", "train.precision=bf16"]
    with pytest.raises(ConfigError, match=r"compile_regions does not work with compute\.sharding zero3"):
        check_before_start(read_recipe(RECIPE, [*compiled, "compute.sharding=zero3"]))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="needs a C compiler on the training machine"):
        check_before_start(read_recipe(RECIPE, compiled))
    check_before_start(read_recipe(RECIPE, [*compiled, "compute.env={CC: /opt/cc}"]))
    monkeypatch.setattr("tasks.launch.process.this_machine", lambda: Machine(num_cores=8, num_gpus=0))
    check_before_start(read_recipe(RECIPE, [*compiled, "compute.sharding=zero3"]))
