"""The judge's endpoint is asked before the first step of a run, and by no run that starts none."""

from pathlib import Path

import pytest

from dpo_core.contract.data_jobs import MixResult
from dpo_core.contract.errors import ConfigError, DataError
from dpo_core.contract.job import Job
from dpo_core.contract.jobs import ExportJob
from dpo_core.contract.judge_config import JUDGE_KEY, JudgeConfig
from dpo_core.contract.judge_job import JudgeJob
from flows.before_start import check_inputs
from flows.judging import check_answers_to_come, with_judge_asked_first
from flows.settings.stage_config import StageConfig
from tasks.hub.judge_server import how_judged
from tasks.launch.context import Context
from tasks.launch.launcher import launcher_for
from tasks.launch.workplace import Workplace
from tasks.run.folder import recorded_run
from tests.loopback_judge import judge_server

KEY = "planted-judge-key"
SOME, JUDGING = ExportJob.model_construct(), JudgeJob.model_construct()


def config_of(url: str, **sections: dict) -> StageConfig:
    judge = {"kind": "endpoint", "model": "judge-7b", "endpoint": url}
    return StageConfig(
        checkpoint={"source": "a/b"}, data={"sources": [{"source": "c/d"}]}, judge=judge, **sections
    )


def heard_and_place(config: StageConfig, store: Path) -> tuple[list[tuple[Job, str]], Workplace]:
    heard: list[tuple[Job, str]] = []
    context = Context(on_job=lambda job, moment: heard.append((job, moment)))
    place = Workplace(store, launcher_for(config.compute, config), context)
    return heard, with_judge_asked_first(config, place)


def test_a_missing_key_ends_the_run_before_its_first_step_and_a_good_one_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.delenv(JUDGE_KEY, raising=False)
    with judge_server() as server:
        server.key = KEY
        heard, place = heard_and_place(config_of(server.url), tmp_path)
        with pytest.raises(ConfigError, match="refuses a question with 401"):
            place.context.tell_job(SOME, "started")
        assert heard == []
        monkeypatch.setenv(JUDGE_KEY, KEY)
        place.context.tell_job(SOME, "started")
        place.context.tell_job(SOME, "ended")
        place.context.tell_job(SOME, "started")
        assert [moment for _, moment in heard] == ["started", "ended", "started"]
        assert len(server.asked) == 1


def test_a_member_of_a_sweep_asks_as_well(tmp_path, monkeypatch):
    monkeypatch.delenv(JUDGE_KEY, raising=False)
    with judge_server() as server:
        server.key = KEY
        config = config_of(server.url)
        _, place = heard_and_place(config, tmp_path)
        with recorded_run(tmp_path, config.name, config) as folder:
            of_member = folder.context(place.context)
            with pytest.raises(ConfigError, match="refuses a question with 401"):
                of_member.tell_job(SOME, "started")


def test_who_finds_all_results_or_only_judges_asks_nothing(tmp_path):
    heard, place = heard_and_place(config_of("http://127.0.0.1:9/v1"), tmp_path)
    place.context.tell_job(SOME, "reused")
    place.context.tell_job(JUDGING, "started")  # which may have heard all of it before
    place.context.tell_job(SOME, "started")  # the hand-off's, say
    assert [moment for _, moment in heard] == ["reused", "started", "started"]


def test_where_nodes_have_another_network_only_the_key_is_looked_for(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv(JUDGE_KEY, raising=False)
    on_nodes = config_of("http://judge.invalid/v1", compute={"launcher": "slurm"})
    heard, place = heard_and_place(on_nodes, tmp_path)
    place.context.tell_job(SOME, "started")
    assert len(heard) == 1
    assert f"{JUDGE_KEY} is not set" in caplog.text
    assert "from the step's own network alone; without a key" in how_judged(
        on_nodes.judge, on_nodes.compute, on_nodes
    )
    here = config_of(
        "http://judge.invalid/v1",
        compute={"launcher": "slurm"},
        slurm={"on_this_machine": ["fetch", "judge"]},
    )
    assert "asked before the first step, too; without a key" in how_judged(here.judge, here.compute, here)


def test_a_judge_without_a_held_out_row_is_refused_once_the_data_are_mixed():
    nothing = MixResult.model_construct(train_rows=12, held_out_rows=0)
    judging = config_of("http://127.0.0.1:9/v1")
    with pytest.raises(
        DataError, match=r"of the 12 rows of this mixture none is held out.*Raise data\.held_out"
    ):
        check_answers_to_come(judging, nothing)
    check_answers_to_come(judging, nothing.model_copy(update={"held_out_rows": 1}))
    check_answers_to_come(judging.model_copy(update={"judge": JudgeConfig()}), nothing)


def stopping(*signs: str, **sections: dict) -> StageConfig:
    return StageConfig(
        checkpoint={"source": "a/b"},
        data={"sources": [{"source": "c/d"}]},
        evaluation={"warnings": {"stop": signs}},
        **sections,
    )


def mixed(held_out_rows: int, held_out_checked: int | None = None) -> MixResult:
    return MixResult.model_construct(
        train_rows=99, held_out_rows=held_out_rows, held_out_checked=held_out_checked
    )


@pytest.mark.parametrize(
    ("sign", "fewest"),
    [("displacement", 1), ("length", 1), ("length_correlation", 30), ("length_rule", 30), ("no_signal", 30)],
)
def test_a_sign_that_too_few_pairs_will_never_show_is_refused_once_the_data_are_mixed(sign, fewest):
    with pytest.raises(
        DataError, match=f"stop names {sign}, which needs {fewest} held-out pairs.*out {fewest - 1}"
    ):
        check_answers_to_come(stopping(sign), mixed(fewest - 1))
    check_answers_to_come(stopping(sign), mixed(fewest))
    check_answers_to_come(stopping(), mixed(0))


def test_outcome_is_refused_where_nothing_is_counted_in_answers():
    with pytest.raises(DataError, match="stop names outcome, and no held-out prompt has an instruction"):
        check_answers_to_come(stopping("outcome"), mixed(40, 0), mixed(10, 0))
    check_answers_to_come(stopping("outcome"), mixed(40, 1))
    check_answers_to_come(stopping("outcome"), mixed(40, 0), mixed(10, 2))
    check_answers_to_come(stopping("outcome"), mixed(40))  # a mixture of before does not say
    judge = {"kind": "reward_model", "model": "org/judge"}
    check_answers_to_come(stopping("outcome", judge=judge), mixed(40, 0))
    check_answers_to_come(stopping("outcome", benchmarks={"tasks": ["gsm8k"]}), mixed(40, 0))


def test_a_container_has_a_loopback_of_its_own():
    config = config_of("http://localhost:8000/v1", compute={"launcher": "docker"})
    with pytest.raises(ConfigError, match=r"container, whose loopback is its own.*address of this machine"):
        check_inputs(config)
