"""The key of a judge's endpoint reaches the step ``judge`` alone."""

import logging
from pathlib import Path

import pytest

from dpo_core.contract.judge_config import JUDGE_KEY, QUESTION, JudgeConfig
from dpo_core.contract.judge_job import EndpointJudge, JudgeJob
from tasks.hub import judge_key as module
from tasks.hub.judge_key import with_judge_key
from tasks.judge import endpoint_of
from tasks.launch.command import step_command
from tasks.launch.compute import this_machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.process import ProcessLauncher, clean_environment
from tasks.launch.workplace import Workplace

KEY = "planted-judge-key"
PLACE = Workplace(Path("/store"), ProcessLauncher(ComputeConfig()))
ASKED = JudgeConfig(kind="endpoint", model="m", endpoint="http://localhost/v1")


def job_of(config: JudgeConfig, place: Workplace) -> JudgeJob:
    return JudgeJob(
        judge=endpoint_of(config, place), answers_file="/r.json", answers_content="a", cache_dir="/w"
    ).at(Path("/store/judge/1"))


def test_it_is_in_the_step_s_environment_and_nowhere_else(monkeypatch, caplog):
    monkeypatch.delenv(JUDGE_KEY, raising=False)
    monkeypatch.setattr(module, "load_secret", lambda name, setting, variable: {"my-judge": KEY}[name])
    config = ASKED.model_copy(update={"key_block": "my-judge"})
    with with_judge_key(PLACE, config) as place:
        job = job_of(config, place)
        command = step_command(job, ComputeConfig(), this_machine(), "python")
        assert clean_environment(command, place.context)[JUDGE_KEY] == KEY
        assert KEY not in f"{place!r} {command!r} {job.model_dump_json()}"
        assert clean_environment(command, PLACE.context).get(JUDGE_KEY) is None
        logging.getLogger("huggingface_hub").warning("refused: %s", KEY)
    assert "refused" in caplog.text
    assert KEY not in caplog.text
    assert command.needs_network


def test_a_server_without_a_key_needs_none(monkeypatch):
    monkeypatch.delenv(JUDGE_KEY, raising=False)
    with with_judge_key(PLACE, ASKED) as place:
        assert job_of(ASKED, place).secrets == ()
    monkeypatch.setenv(JUDGE_KEY, KEY)
    with with_judge_key(PLACE, ASKED) as place:
        keyed = job_of(ASKED, place)
    assert keyed.secrets == (JUDGE_KEY,)
    monkeypatch.delenv(JUDGE_KEY)
    assert job_of(ASKED, PLACE).fingerprint == keyed.fingerprint


@pytest.mark.parametrize("question", [None, "{prompt} {first} {second}?"])
def test_the_endpoint_is_asked_as_the_recipe_says(question: str | None):
    config = ASKED.model_copy(update={"question": question, "max_new_tokens": 9, "parameters": {"seed": 1}})
    assert endpoint_of(config, PLACE) == EndpointJudge(
        url="http://localhost/v1",
        model="m",
        question=question or QUESTION,
        max_new_tokens=9,
        parameters={"seed": 1},
    )
