"""Networks that are not Pairline's are refused before anything starts."""

import pytest
from pydantic import ValidationError

from tasks.launch.docker.config import DockerConfig


@pytest.mark.parametrize(("network", "problem"), [
    ("host", "is the machine's own network"), ("default", "every container of the engine"),
    ("container:postgres", "is the network of another container"), ("container:0123abcd", "another container"),
    ("-v", "is no name"), ("a b", "is no name"), ("", "is no name"), ("host\n", "is no name"), ("netzwürk", "is no name"),
    ("service:database", "is no name")])
def test_a_network_of_others_is_refused_with_what_to_do(network: str, problem: str):
    with pytest.raises(ValidationError, match=rf"{problem}[^;]*; leave docker\.network out, .*--label pairline\.network "):
        DockerConfig(network=network)


def test_steps_get_a_network_of_their_own():
    assert DockerConfig().network == "pairline"
    assert DockerConfig(network="bridge").network == "pairline"  # as older recipes have it written down
    assert DockerConfig(network="mirror").network == "mirror"  # the engine is asked whose it is
