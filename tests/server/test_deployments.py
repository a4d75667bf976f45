"""What `pairline up` brings to a server, as the UI gets it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Scheduled

from flows.serve.server_objects import DEAD_RUNS, TRAINING_QUEUE
from flows.serve.switches import switches
from flows.settings.stage_config import StageConfig
from tests.server.conftest import Installation, wait_until
from tests.tiny_models import make_model

pytestmark = pytest.mark.integration
BOUNDS = {"const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
DEPLOYMENTS = {
    "dpo-stage/manual",
    "dpo-stage/quick",
    "dpo-stage/nightly",
    "dpo-stage/after-sft",
    "rlvr-intake/after-dpo",
    "store-gc/store-gc",
    "reap/reap",
    "failed-trigger/failed-trigger",
    "resume-crashed/resume-crashed",
    "dpo-sweep/manual",
}


def test_the_deployments_share_a_pool_and_the_training_ones_a_queue_with_a_limit(installation: Installation):
    with installation.client() as client:
        found = {name: client.read_deployment_by_name(name) for name in DEPLOYMENTS}
        assert {deployment.work_pool_name for deployment in found.values()} == {"pairline"}
        queue = client.read_work_queue_by_name(TRAINING_QUEUE, work_pool_name="pairline")
        assert client.read_global_concurrency_limit_by_name("cpu").limit == 2
    assert queue.concurrency_limit == 2
    assert {name for name, deployment in found.items() if deployment.work_queue_name == TRAINING_QUEUE} == {
        "dpo-stage/manual",
        "dpo-stage/quick",
        "dpo-stage/nightly",
        "dpo-stage/after-sft",
        "dpo-sweep/manual",
    }
    assert all(deployment.description for deployment in found.values())


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_a_form_explains_every_field_and_bounds_every_number(installation: Installation, name: str):
    with installation.client() as client:
        schema = client.read_deployment_by_name(name).parameter_openapi_schema
    sections = schema.get("definitions", {})
    fields = {
        f"{section}.{field}": content
        for section, definition in {**sections, "": schema}.items()
        for field, content in definition.get("properties", {}).items()
    }
    assert fields
    assert not [field for field, content in fields.items() if not is_explained(content, sections)]
    assert not [field for field, content in fields.items() if not is_bounded(content)]


def is_explained(field: dict, sections: dict) -> bool:
    """Whether a field, or the one section that it is, has a description."""
    return bool(
        field.get("description") or sections.get(field.get("$ref", "").split("/")[-1], {}).get("description")
    )


def is_bounded(field: dict) -> bool:
    """Whether every kind of number that a field may be has a bound."""
    kinds = [
        field,
        *field.get("anyOf", ()),
        *([field["items"]] if isinstance(field.get("items"), dict) else ()),
    ]
    return all(BOUNDS & set(kind) for kind in kinds if kind.get("type") in ("number", "integer"))


def test_the_form_has_bounds_and_defaults_of_the_settings(installation: Installation):
    with installation.client() as client:
        deployment = client.read_deployment_by_name("dpo-stage/manual")
    numbers = deployment.parameter_openapi_schema["definitions"]["OptimConfig"]["properties"]["learning_rate"]
    assert (numbers["exclusiveMinimum"], numbers["default"]) == (0, 5e-7)
    assert StageConfig.model_validate(deployment.parameters["config"]).data.sources[0].amount == "1.0"


@pytest.fixture(scope="module")
def of_the_form(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The parameters of the form as `up` fills it in, but one step on a tiny model, in a store of its own."""
    with installation.client() as client:
        config = client.read_deployment_by_name("dpo-stage/manual").parameters["config"]
    folder = tmp_path_factory.mktemp("form")
    make_model(folder / "sft", seed=1)  # not the one of the tests' chain
    return {
        "config": config
        | {
            "checkpoint": {"source": str(folder / "sft")},
            "train": config["train"] | {"max_steps": 1},
            "evaluation": config["evaluation"] | {"num_prompts": 4, "max_new_tokens": 8},
            "compute": {"threads_per_process": 1},
            "store": {"root": str(folder / "store")},
        }
    }


def test_the_values_of_the_form_run_and_the_nightly_run_reuses_them(
    installation: Installation, of_the_form: dict
):
    """The run of the night is the one that the schedule laid; it is only started before its time."""
    done = installation.wait_for_end(installation.start("dpo-stage/manual", of_the_form))
    assert done.state.is_completed(), done.state.message
    store = Path(of_the_form["config"]["store"]["root"])
    before = {log: log.read_text() for log in store.glob("*/*/log.txt")}
    assert len(before) >= 4
    with installation.client() as client:
        deployment = client.read_deployment_by_name("dpo-stage/nightly")
        assert deployment.parameters == client.read_deployment_by_name("dpo-stage/manual").parameters
        client.update_deployment(deployment.id, DeploymentUpdate(parameters=of_the_form))
        try:
            laid = wait_until(
                lambda: [run for run in ahead(client, deployment.id) if run.parameters == of_the_form],
                "a scheduled run",
            )
            client.set_flow_run_state(
                laid[-1].id, Scheduled(), force=True
            )  # the last, as a night is laid once
            night = installation.wait_for_end(laid[-1].id)
        finally:
            client.update_deployment(deployment.id, DeploymentUpdate(parameters=deployment.parameters))
    assert night.auto_scheduled
    assert night.state.is_completed(), night.state.message
    assert {log: log.read_text() for log in store.glob("*/*/log.txt")} == before


def test_the_quick_form_shows_eight_settings_and_runs_the_same_stage(
    installation: Installation, of_the_form: dict, tmp_path: Path
):
    with installation.client() as client:
        schema = client.read_deployment_by_name("dpo-stage/quick").parameter_openapi_schema
    assert set(schema["definitions"]["QuickConfig"]["properties"]) == {
        "checkpoint",
        "data",
        "objective",
        "beta",
        "learning_rate",
        "epochs",
        "length",
        "name",
    }
    config = of_the_form["config"]
    (tmp_path / "recipe.yaml").write_text(
        json.dumps({key: value for key, value in config.items() if key != "name"})
    )
    data = config["data"]
    settings = {
        "checkpoint": config["checkpoint"]["source"],
        "data": data["sources"][0]["source"],
        "name": "quick",
        "length": data["max_length_tokens"],
        "learning_rate": config["optim"]["learning_rate"],
    }
    store = Path(config["store"]["root"])
    before = {log: log.read_text() for log in store.glob("train/*/log.txt")}
    run = installation.start(
        "dpo-stage/quick", {"settings": settings, "recipe": str(tmp_path / "recipe.yaml")}
    )
    done = installation.wait_for_end(run)
    assert done.state.is_completed(), done.state.message
    assert before
    assert {
        log: log.read_text() for log in store.glob("train/*/log.txt")
    } == before  # the result of `manual` is its own


def test_garbage_is_collected_by_the_worker(installation: Installation, of_the_form: dict):
    """After the test above: its store holds two runs that nobody keeps."""
    store = Path(of_the_form["config"]["store"]["root"])
    assert list(store.glob("train/[!.]*"))
    dry = {"store_root": str(store), "older_than_days": 0, "keep_per_name": 0}
    done = installation.wait_for_end(installation.start("store-gc/store-gc", dry))
    assert done.state.is_completed(), done.state.message
    assert not list(store.glob("train/[!.]*"))
    assert list(store.glob("published/*"))
    assert list(store.glob("handoff/*/handoff.json"))


@pytest.mark.parametrize(("section", "wrong"), [("optim", {"learning_rate": -1}), ("loss", {"bta": 0.1})])
def test_a_wrong_value_is_refused_when_a_run_is_created(
    installation: Installation, section: str, wrong: dict
):
    with installation.client() as client:
        config = client.read_deployment_by_name("dpo-stage/manual").parameters["config"]
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        installation.start("dpo-stage/manual", {"config": config | {section: wrong}})


@pytest.mark.parametrize("wrong", [{"older_than_days": -1}, {"keep_per_name": -1}])
def test_garbage_of_the_future_is_refused(installation: Installation, wrong: dict):
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        installation.start("store-gc/store-gc", wrong)


def ahead(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    """The runs that a deployment's schedule has laid, the next one first."""
    runs = client.read_flow_runs(limit=200)
    return sorted(
        (
            run
            for run in runs
            if run.deployment_id == deployment
            and run.state
            and run.auto_scheduled
            and run.state.type == StateType.SCHEDULED
        ),
        key=lambda run: run.expected_start_time,
    )


def test_the_cron_schedule_gives_a_scheduled_run_at_night(installation: Installation):
    with installation.client() as client:
        deployment = client.read_deployment_by_name("dpo-stage/nightly")
        assert deployment.schedules[0].schedule.timezone == "Europe/Berlin"
        first = wait_until(lambda: ahead(client, deployment.id), "a scheduled run")[0].expected_start_time
    assert datetime.now(UTC) < first < datetime.now(UTC) + timedelta(days=1, hours=1)
    assert f"{first.astimezone(ZoneInfo('Europe/Berlin')):%H:%M}" == "02:00"


def test_up_again_changes_nothing_that_runs_and_nothing_that_was_switched(installation: Installation):
    def state() -> tuple:
        with installation.client() as client:
            automations = client.request("POST", "/automations/filter", json={}).json()
            return (
                installation.server.pid(),
                installation.worker.pid(),
                sorted(automation["name"] for automation in automations),
                # of this one: an update would forget whose heartbeats it waits for
                [automation["updated"] for automation in automations if automation["name"] == DEAD_RUNS],
                sorted(str(deployment.id) for deployment in client.read_deployments()),
                switches(client),
            )

    def switch(nightly: bool, hourly: bool, paused: bool) -> None:
        with installation.client() as client:
            for name, active in (("dpo-stage/nightly", nightly), ("reap/reap", hourly)):
                deployment = client.read_deployment_by_name(name)
                client.update_deployment_schedule(deployment.id, deployment.schedules[0].id, active=active)
            client.set_deployment_paused_state(client.read_deployment_by_name("store-gc/store-gc").id, paused)

    switch(nightly=False, hourly=True, paused=True)
    before = state()
    try:
        again = installation.pairline("up")
        assert again.returncode == 0, again.stderr
        assert state() == before
    finally:
        switch(nightly=True, hourly=False, paused=False)
    assert "runs" in again.stdout
    assert "started" not in again.stdout
    assert len(set(before[2])) == len(before[2]) >= 5


def test_up_again_leaves_deployments_alone_that_are_those_of_the_code(installation: Installation):
    """Deploying makes their automations anew, which would miss the events of that moment."""

    def made() -> set[str]:
        with installation.client() as client:
            return {
                automation["id"]
                for automation in client.request("POST", "/automations/filter", json={}).json()
            }

    def switch_off(paused: bool) -> None:
        with installation.client() as client:
            client.set_deployment_paused_state(client.read_deployment_by_name("store-gc/store-gc").id, paused)

    assert installation.pairline("up").returncode == 0
    before = made()
    assert installation.pairline("up").returncode == 0
    assert made() == before
    try:
        switch_off(True)  # what the server holds has changed
        assert installation.pairline("up").returncode == 0
        assert made() != before
    finally:
        switch_off(False)


def test_a_taken_port_is_named(installation: Installation, tmp_path):
    other = installation.pairline("up", PAIRLINE_HOME=str(tmp_path))
    assert other.returncode == 10
    assert f"Port {installation.settings.port}" in other.stderr
    assert "PAIRLINE_PORT" in other.stderr
    assert not list(tmp_path.glob("serve/*.pid"))
