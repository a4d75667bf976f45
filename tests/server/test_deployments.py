"""What `pairline up` brings to a server, as the UI gets it."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectHTTPStatusError

from flows.serve.server_objects import DEAD_RUNS, TRAINING_QUEUE
from flows.serve.switches import switches
from flows.stage_config import StageConfig
from tests.server.conftest import Installation, wait_until

pytestmark = pytest.mark.integration
DEPLOYMENTS = {"dpo-stage/manual", "dpo-stage/nightly", "dpo-stage/after-sft", "rlvr-intake/after-dpo", "store-gc/store-gc",
               "reap/reap", "failed-trigger/failed-trigger", "resume-crashed/resume-crashed", "dpo-sweep/manual"}


def test_the_deployments_share_a_pool_and_the_training_ones_a_queue_with_a_limit(installation: Installation):
    with installation.client() as client:
        found = {name: client.read_deployment_by_name(name) for name in DEPLOYMENTS}
        assert {deployment.work_pool_name for deployment in found.values()} == {"pairline"}
        queue = client.read_work_queue_by_name(TRAINING_QUEUE, work_pool_name="pairline")
        assert client.read_global_concurrency_limit_by_name("cpu").limit == 2
    assert queue.concurrency_limit == 2
    assert {name for name, deployment in found.items() if deployment.work_queue_name == TRAINING_QUEUE} == {
        "dpo-stage/manual", "dpo-stage/nightly", "dpo-stage/after-sft", "dpo-sweep/manual"}
    assert all(deployment.description for deployment in found.values())


def test_the_form_explains_and_bounds_every_field_and_its_values_run(installation: Installation):
    with installation.client() as client:
        deployment = client.read_deployment_by_name("dpo-stage/manual")
    schema = deployment.parameter_openapi_schema
    bare = [f"{section}.{name}" for section, definition in schema["definitions"].items() if section != "StageConfig"
            for name, field in definition.get("properties", {}).items() if not field.get("description")]
    assert not bare
    numbers = schema["definitions"]["OptimConfig"]["properties"]["learning_rate"]
    assert (numbers["exclusiveMinimum"], numbers["default"]) == (0, 5e-7)
    assert StageConfig.model_validate(deployment.parameters["config"]).data.sources[0].amount == "1.0"


@pytest.mark.parametrize(("section", "wrong"), [("optim", {"learning_rate": -1}), ("loss", {"bta": 0.1})])
def test_a_wrong_value_is_refused_when_a_run_is_created(installation: Installation, section: str, wrong: dict):
    with installation.client() as client:
        config = client.read_deployment_by_name("dpo-stage/manual").parameters["config"]
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        installation.start("dpo-stage/manual", {"config": config | {section: wrong}})


def test_the_cron_schedule_gives_a_scheduled_run_at_night(installation: Installation):
    with installation.client() as client:
        deployment = client.read_deployment_by_name("dpo-stage/nightly")
        assert deployment.schedules[0].schedule.timezone == "Europe/Berlin"

        def ahead() -> list:
            return [run for run in client.read_flow_runs(limit=200) if run.deployment_id == deployment.id
                    and run.state and run.state.type == StateType.SCHEDULED and run.auto_scheduled]

        runs = wait_until(ahead, "a scheduled run")
    first = min(run.expected_start_time for run in runs)
    assert datetime.now(UTC) < first < datetime.now(UTC) + timedelta(days=1, hours=1)
    assert f"{first.astimezone(ZoneInfo('Europe/Berlin')):%H:%M}" == "02:00"


def test_up_again_changes_nothing_that_runs_and_nothing_that_was_switched(installation: Installation):
    def state() -> tuple:
        with installation.client() as client:
            automations = client.request("POST", "/automations/filter", json={}).json()
            return (installation.server.pid(), installation.worker.pid(),
                    sorted(automation["name"] for automation in automations),
                    # of this one: an update would forget whose heartbeats it waits for
                    [automation["updated"] for automation in automations if automation["name"] == DEAD_RUNS],
                    sorted(str(deployment.id) for deployment in client.read_deployments()), switches(client))

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


def test_a_taken_port_is_named(installation: Installation, tmp_path):
    other = installation.pairline("up", PAIRLINE_HOME=str(tmp_path))
    assert other.returncode == 10
    assert f"Port {installation.settings.port}" in other.stderr
    assert "PAIRLINE_PORT" in other.stderr
    assert not list(tmp_path.glob("serve/*.pid"))
