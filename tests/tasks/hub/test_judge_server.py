"""The judge's endpoint is asked one question before anything is trained."""

import socket

import pytest

from dpo_core.contract.errors import ConfigError, RemoteError
from dpo_core.contract.judge_config import JUDGE_KEY, JudgeConfig
from tasks.hub.judge_server import ask_endpoint, lacks_a_key
from tasks.hub.redaction import redacted
from tests.loopback_judge import JudgeServer, judge_server

KEY = "planted-judge-key"


@pytest.fixture
def server():
    with judge_server() as server:
        yield server


def at(url: str, **settings: object) -> JudgeConfig:
    return JudgeConfig(kind="endpoint", model="judge-7b", endpoint=url, timeout_seconds=5, **settings)


def test_one_question_is_put_as_the_step_puts_it(server: JudgeServer):
    ask_endpoint(at(server.url, max_new_tokens=9, parameters={"temperature": None, "seed": 3}), KEY)
    (body,) = server.asked
    assert (body["model"], body["max_tokens"], body["seed"]) == ("judge-7b", 9, 3)
    assert "temperature" not in body
    assert "What is two and two?" in server.questions[0]
    assert "{prompt}" not in server.questions[0]
    assert server.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize(("key", "shown"), [(None, "Bearer none"), ("planted-other-key", "Bearer <token>")])
def test_a_key_that_is_missing_or_wrong_is_refused_with_what_to_do(server: JudgeServer, key, shown):
    server.key = KEY
    with pytest.raises(
        ConfigError, match=f"401, asked before anything is trained: wrong key: {shown}"
    ) as refused:
        ask_endpoint(at(server.url), key)
    assert JUDGE_KEY in str(refused.value)
    assert "planted" not in str(refused.value)


def test_a_server_that_is_not_there_or_is_none_of_that_kind_is_worth_another_try(server: JudgeServer):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(RemoteError, match="does not answer: ConnectError"):
        ask_endpoint(at(nobody), None)
    server.faults = [b"<html>", b'{"choices": []}', 503]
    for said in ("no chat completion: <html>", "no chat completion", "503"):
        with pytest.raises(RemoteError, match=said):
            ask_endpoint(at(server.url), None)


def test_a_wrong_path_or_parameter_is_the_recipe_s(server: JudgeServer):
    with pytest.raises(ConfigError, match=r"404.*judge\.endpoint"):
        ask_endpoint(at(server.url.removesuffix("/v1")), None)
    server.faults = [400]
    with pytest.raises(ConfigError, match=r"judge\.parameters"):
        ask_endpoint(at(server.url), None)


def test_a_server_that_is_busy_is_there(server: JudgeServer):
    server.faults = [429]
    ask_endpoint(at(server.url), None)
    assert not server.asked


def test_a_key_is_missed_of_other_machines_alone(monkeypatch):
    monkeypatch.delenv(JUDGE_KEY, raising=False)
    assert lacks_a_key(at("https://judge.example/v1"))
    assert not lacks_a_key(at("http://localhost:8000/v1"))
    assert not lacks_a_key(at("https://judge.example/v1", key_block="my-judge"))
    monkeypatch.setenv(JUDGE_KEY, KEY)
    assert not lacks_a_key(at("https://judge.example/v1"))


@pytest.mark.parametrize("key", ["planted-one\nplanted-two", "planted\x00key", "planted\u2019key"])
def test_a_key_that_no_request_can_carry_is_refused_and_not_shown(server: JudgeServer, key: str):
    with pytest.raises(ConfigError, match=r"line end or another character.*to the key alone") as refused:
        ask_endpoint(at(server.url), key)
    assert "planted" not in str(refused.value)
    assert not server.asked


def test_a_secret_is_cut_out_as_python_writes_it_too():
    secret = "planted-one\nplanted-two"
    assert redacted(f"as it is {secret}, and in a message {secret!r}", secret).count("planted") == 0
