"""The deployments as images/compose.yaml brings them to its server."""

from importlib import import_module

import pytest
import yaml

from dpo_core.errors import ConfigError
from flows.overrides import apply_overrides, validated
from flows.serve.compose import AFTER_DPO, deployments_with_containers
from flows.serve.settings import PROJECT
from flows.stage_config import StageConfig
from flows.sweep_config import SweepConfig

FOLDER, IMAGE = "/srv/somewhere", "sha256:" + "7" * 64


@pytest.fixture(scope="module")
def deployments() -> list[dict]:
    return deployments_with_containers(yaml.safe_load((PROJECT / "prefect.yaml").read_text()), FOLDER, IMAGE)["deployments"]


def test_all_runs_start_in_the_folder_from_installed_code(deployments):
    assert len(deployments) >= 9
    for deployment in deployments:
        module, _, name = deployment["entrypoint"].rpartition(".")
        assert hasattr(import_module(module), name)
        assert deployment["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": FOLDER}}]


def test_all_steps_are_containers_of_the_named_image(deployments):
    launched = []
    for deployment in deployments:
        parameters = deployment["parameters"]
        if "config" in parameters:
            config = (SweepConfig if "sweep" in parameters["config"] else StageConfig).model_validate(parameters["config"])
        elif "recipe" in parameters:
            values = yaml.safe_load((PROJECT / parameters["recipe"]).read_text())
            config = validated(apply_overrides(values, parameters["overrides"]), "recipe")
        elif deployment["entrypoint"] == AFTER_DPO:
            assert (parameters["compute"], parameters["image"]) == ({"launcher": "docker"}, {"use": IMAGE})
            continue
        else:
            continue
        launched.append(deployment["name"])
        assert (config.compute.launcher, config.image.use) == ("docker", IMAGE)
    assert launched == ["manual", "nightly", "after-sft", "manual"]


def test_what_starts_by_an_event_still_does(deployments):
    assert {deployment["name"] for deployment in deployments if deployment.get("triggers")} == {
        "after-sft", "after-dpo", "failed-trigger", "resume-crashed"}


def test_an_image_by_its_tag_is_refused():
    with pytest.raises(ConfigError, match=r"PAIRLINE_TRAINER_IMAGE is trainer:latest, expected an id"):
        deployments_with_containers({"deployments": []}, FOLDER, "trainer:latest")
