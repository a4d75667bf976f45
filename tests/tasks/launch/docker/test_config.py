"""Networks that are not Pairline's are refused before anything starts."""

import pytest
from pydantic import ValidationError

from flows.settings.stage_config import StageConfig
from tasks.launch.docker.config import DockerConfig


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        ("host", "is the machine's own network"),
        ("default", "every container of the engine"),
        ("container:postgres", "is the network of another container"),
        ("container:0123abcd", "another container"),
        ("-v", "is no name"),
        ("a b", "is no name"),
        ("", "is no name"),
        ("host\n", "is no name"),
        ("netzwürk", "is no name"),
        ("service:database", "is no name"),
    ],
)
def test_a_network_of_others_is_refused_with_what_to_do(network: str, problem: str):
    with pytest.raises(
        ValidationError, match=rf"{problem}[^;]*; leave docker\.network out, .*--label pairline\.network "
    ):
        DockerConfig(network=network)


def test_steps_get_a_network_of_their_own():
    assert DockerConfig().network == "pairline"
    assert DockerConfig(network="bridge").network == "pairline"  # as older recipes have it written down
    assert DockerConfig(network="mirror").network == "mirror"  # the engine is asked whose it is


def recipe(**sections: dict) -> dict:
    return {"checkpoint": {"source": "o/m"}, "data": {"sources": [{"source": "o/d"}]}, **sections}


@pytest.mark.parametrize(
    ("name", "value"),
    [("memory_gib", 8.0), ("shared_memory_gib", 1.0), ("max_processes", 64), ("network", "mirror")],
)
def test_a_recipe_from_before_there_was_a_section_means_the_same(name: str, value: object):
    config = StageConfig.model_validate(recipe(compute={name: value, "num_processes": 2}))
    assert getattr(config.docker, name) == value
    assert config.compute.num_processes == 2
    both = StageConfig.model_validate(recipe(compute={name: value}, docker={name: value}))
    assert both.docker == config.docker


def test_a_setting_in_both_places_is_refused_with_where_it_belongs():
    with pytest.raises(ValidationError, match=r"compute\.network is docker\.network now, and both are set"):
        StageConfig.model_validate(recipe(compute={"network": "mirror"}, docker={"network": "other"}))
