"""An engine that is not there, or fails, in words."""

import socket

import pytest
import requests
from docker.errors import APIError

from dpo_core.contract.errors import ConfigError, DiskFull, RemoteError
from tasks.image.config import ImageConfig
from tasks.image.engine import from_engine_error
from tasks.image.trainer_image import trainer_image
from tasks.launch.docker.engine import ContainerEngine


def test_no_engine_is_said_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(
        ConfigError, match=r"No Docker engine answers.*DOCKER_HOST.*compute\.launcher to process"
    ):
        trainer_image(ImageConfig(), tmp_path / "store", None, print)


@pytest.mark.parametrize("scheme", ["unix", "tcp"])
def test_an_engine_that_refuses_for_now_is_worth_a_retry(tmp_path, monkeypatch, scheme):
    """As while it is restarted: its socket is there, and nobody answers."""
    with socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET) as ended:
        ended.bind(str(tmp_path / "engine.sock") if scheme == "unix" else ("127.0.0.1", 0))
        place = f"{tmp_path}/engine.sock" if scheme == "unix" else "{}:{}".format(*ended.getsockname())
        monkeypatch.setenv("DOCKER_HOST", f"{scheme}://{place}")
        with pytest.raises(
            RemoteError, match=r"No Docker engine answers.*refused.*compute\.launcher to process"
        ):
            trainer_image(ImageConfig(), tmp_path / "store", None, print)
        with pytest.raises(RemoteError, match=rf"no engine answers at {scheme}://{place}"):
            ContainerEngine().check()


def test_an_address_that_is_none_is_not_retried(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "wrong")
    with pytest.raises(ConfigError, match="no engine answers at wrong"):
        ContainerEngine().check()


def api_error(status: int, explanation: str) -> APIError:
    response = requests.Response()
    response.status_code = status
    return APIError("an error", response=response, explanation=explanation)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (api_error(400, "dockerfile parse error line 3"), ConfigError, "parse error line 3"),
        (api_error(500, "write /x: no space left on device"), DiskFull, "docker system df"),
        (api_error(500, "something broke"), RemoteError, "something broke"),
        (requests.exceptions.ConnectionError("Connection aborted"), RemoteError, "start again"),
    ],
)
def test_its_failures_are_of_the_tree(error, kind, said):
    failure = from_engine_error(error, "building")
    assert type(failure) is kind
    assert said in str(failure)
    assert "while building" in str(failure)
