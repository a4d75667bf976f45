"""Whole runs with a judge: after the evaluation, in the gate, on every page, and never asked twice."""

from pathlib import Path

import pytest

from dpo_core.contract.errors import ConfigError, GateFailed
from dpo_core.contract.judge_config import JUDGE_KEY
from dpo_core.contract.judge_job import JudgeResult
from dpo_core.contract.results import RESULT_FILE
from flows.dpo_stage import dpo_stage
from tests.flows.conftest import last_run, launches, tiny_config
from tests.loopback_judge import judge_server
from tests.tiny_judges import make_reward_model

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]
KEY = "planted-judge-key"


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory) -> Path:
    return make_reward_model(tmp_path_factory.mktemp("judge") / "my-reward-model")


def result_of(outputs: dict[str, str]) -> JudgeResult:
    return JudgeResult.model_validate_json((Path(outputs["judge"]) / RESULT_FILE).read_bytes())


def test_a_run_is_judged_by_a_model_and_by_a_server_and_shows_it(
    tiny_inputs, reward_model, tmp_path, monkeypatch
):
    def config(judge: dict, bound: float):
        return tiny_config(tiny_inputs, tmp_path, judge=judge, gate={"judge": {"win_rate_at_least": bound}})

    by_model = {"kind": "reward_model", "model": str(reward_model)}
    handoff = dpo_stage(config(by_model, 0.0))
    folder, record = last_run(tmp_path)
    names = [step.name for step in record.tasks]
    assert names.index("evaluate") < names.index("judge") < names.index("gate")
    found = result_of(record.outputs).judgement
    assert (found.model, found.num_prompts) == ("my-reward-model", 3)
    assert handoff.metrics_after["judge/win_rate"] == found.win_rate
    assert "judge/win_rate" not in handoff.metrics_before
    (check,) = handoff.release.checks
    assert (check.passed, check.value) == (True, found.win_rate)
    card = (Path(handoff.checkpoint.directory) / "README.md").read_text()
    assert "## Judge" in card
    assert str(reward_model) not in card
    assert "my-reward-model scored each answer" in (folder / "report.html").read_text()
    with judge_server(lambda *texts: "A") as server:
        server.key = KEY
        monkeypatch.setenv(JUDGE_KEY, KEY)
        asked = {"kind": "endpoint", "model": "judge-7b", "endpoint": server.url, "price_in": 2.0}
        with pytest.raises(GateFailed, match="win rate at least 1: got"):
            dpo_stage(config(asked, 1.0))
        by_server = result_of(last_run(tmp_path)[1].outputs)
        assert by_server.asked == len(server.questions) == len(set(server.questions))
        assert by_server.judgement.kind == "endpoint"
        dpo_stage(config(asked | {"concurrency": 2, "price_in": 3.0}, 0.0))
        assert len(server.questions) == by_server.asked
    assert launches(tmp_path)["judge"] == 2
    assert launches(tmp_path)["train"] == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_judge_that_refuses_the_key_ends_the_run_before_a_step_of_it_is_started(
    tiny_inputs, tmp_path, monkeypatch
):
    monkeypatch.delenv(JUDGE_KEY, raising=False)
    with judge_server() as server:
        server.key = KEY
        asked = {"kind": "endpoint", "model": "judge-7b", "endpoint": server.url}
        with pytest.raises(ConfigError, match=f"refuses a question with 401.*{JUDGE_KEY}"):
            dpo_stage(tiny_config(tiny_inputs, tmp_path, judge=asked))
        assert server.requests == 1
    assert not any(launches(tmp_path).values())
    assert "asked before anything is trained" in last_run(tmp_path)[1].error
