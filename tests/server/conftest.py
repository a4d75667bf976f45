"""One installation for all tests of this folder: what `pairline up` starts, on a free port, with a home of its own."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from examples.slurm.private_cluster import free_ports
from flows.serve.background import Background
from flows.serve.credential import kept_credential, login_link
from flows.serve.settings import ServeSettings
from tests import waiting
from tests.left_behind import folder_in_memory
from tests.prefect_database import new_prefect_home
from tests.server.browser import Page
from tests.tiny_models import make_model
from tests.tiny_stage import tiny_values, write_inputs
from tests.warm.started import python_path

ROOT = Path(__file__).parents[2]
wait_until = functools.partial(waiting.wait_until, pause=0.5)
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


@dataclass(frozen=True)
class Installation:
    """A running server and worker."""

    settings: ServeSettings
    environment: dict[str, str]

    def pairline(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        """The command line, talking to this server."""
        return subprocess.run(
            [sys.executable, "-m", "flows.terminal", *arguments],
            cwd=ROOT,
            text=True,
            env=self.environment | variables,
            capture_output=True,
            check=False,
            timeout=600,
        )

    @property
    def password(self) -> str:
        """`user:password`, as `pairline up` made it."""
        password = kept_credential(self.settings.folder)
        assert password, "pairline up has made no password"
        return password

    @property
    def login_link(self) -> str:
        """What `pairline up` prints."""
        return login_link(self.settings.ui_url, self.password)

    @contextlib.contextmanager
    def of_this_server(self) -> Iterator[None]:
        """What Prefect's own code does inside, it does on this server."""
        with temporary_settings(
            {
                PREFECT_API_URL: self.settings.api_url,
                PREFECT_UI_URL: self.settings.ui_url,
                PREFECT_API_AUTH_STRING: self.password,
            }
        ):
            yield

    @functools.cached_property
    def _client(self) -> SyncPrefectClient:
        """Made once: that takes 0.1 s of a core, an answer 4 ms, and whoever waits asks twice a second."""
        with self.of_this_server():
            return get_client(sync_client=True).__enter__()

    @contextlib.contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """Of this server. It is closed with the process."""
        yield self._client

    def start(self, deployment: str, parameters: dict | None = None) -> UUID:
        """A new run of a deployment."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters or {}).id

    def run(self, flow_run_id: UUID) -> FlowRun:
        with self.client() as client:
            return client.read_flow_run(flow_run_id)

    def runs_of(self, deployment: str) -> list[FlowRun]:
        """Runs of a deployment, oldest first, without those that its schedule laid ahead."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            runs = client.read_flow_runs(limit=200)
        return sorted(
            (run for run in runs if run.deployment_id == found.id and not run.auto_scheduled),
            key=lambda run: run.created,
        )

    def wait_for_end(self, flow_run_id: UUID) -> FlowRun:
        """The run once it is over."""
        return wait_until(
            lambda: (run := self.run(flow_run_id)).state and run.state.type.value in ENDED and run,
            f"the end of {flow_run_id}",
            lambda: self.describe(flow_run_id),
        )

    def describe(self, flow_run_id: UUID) -> str:
        """Why a run may not go on: its state, and what its worker said last."""
        worker = "lives" if self.worker.pid() else "has ended"
        return f"{self.run(flow_run_id).state!r}; the worker {worker}:\n{self.worker.last_lines()}"

    @property
    def server(self) -> Background:
        return Background("server", self.settings.folder)

    @property
    def worker(self) -> Background:
        return Background("worker", self.settings.folder)


def free_port() -> int:
    """One that stays free while a server that is killed comes back."""
    return free_ports(1)[0]


def kill(pids: Iterable[int]) -> None:
    """With -9 those that still live: one may have ended with another."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def log_in(installation: Installation, page: Page) -> None:
    """As a person does: by the link."""
    page.open(installation.login_link)
    page.wait_for("nightly")  # on the page that it leads to


@contextlib.contextmanager
def installed(home: Path, **variables: str) -> Iterator[Installation]:
    """What `pairline up` starts in ``home`` on a free port, stopped by `pairline down`."""
    settings = ServeSettings(home=home, port=free_port())
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PAIRLINE_"))
    }
    made = Installation(
        settings,
        own
        | {
            "PAIRLINE_HOME": str(home),
            "PAIRLINE_PORT": str(settings.port),
            "PYTHONPATH": python_path(),
            "OMP_NUM_THREADS": "1",
            "PREFECT_API_URL": settings.api_url,
            "PREFECT_HOME": str(settings.prefect_home),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            **variables,
        },
    )
    if "PAIRLINE_DATABASE_URL" not in variables:
        new_prefect_home(settings.prefect_home)
    try:
        up = made.pairline("up")
        assert up.returncode == 0, up.stdout + up.stderr
        assert made.login_link in up.stdout
        print(up.stdout + up.stderr)
        yield made
    finally:
        down = made.pairline("down")
        assert down.returncode == 0, down.stderr
        for name in ("server", "worker"):
            log = settings.folder / f"{name}.log"
            print(f"--- end of {name}.log", *log.read_text().splitlines()[-20:], sep="\n")


@pytest.fixture(scope="package")
def installation() -> Iterator[Installation]:
    """The one that the tests of this folder share, unless they say otherwise. It ends with them: idle, it takes a tenth of a
    core.

    Its home lies in memory, so that its database never waits for what other tests write to the disk.
    """
    with (
        tempfile.TemporaryDirectory(prefix="home-", dir=folder_in_memory()) as home,
        installed(Path(home), PAIRLINE_TRAINING_SLOTS="2", OPENAI_KEY="planted") as made,
    ):
        yield made


@pytest.fixture(scope="package")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a 2-layer model in ``sft/`` and 60 pairs in ``pairs.jsonl``."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="package")
def chain(
    installation: Installation, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """An SFT checkpoint told of twice by the command line. -> the store, the event's id"""
    store = tmp_path_factory.mktemp("chain") / "store"
    sft = make_model(
        store.parent / "sft", seed=2
    )  # its own, as a chain is named after the checkpoint that it starts from
    values = tiny_values(inputs, store)
    del values["checkpoint"]
    recipe = store.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    refused = installation.pairline("emit-sft", str(sft), "--recipe", str(recipe), "--store", str(store))
    assert "where dpo-stage/after-sft takes recipes from" in refused.stderr
    with installation.client() as client:
        found = client.read_deployment_by_name("dpo-stage/after-sft")
        client.update_deployment(
            found.id, DeploymentUpdate(parameters=found.parameters | {"recipes_folder": str(store.parent)})
        )
    told = installation.pairline("emit-sft", str(sft), "--recipe", str(recipe), "--store", str(store))
    assert told.returncode == 0, told.stderr
    again = installation.pairline("emit-sft", str(sft), "--recipe", str(recipe), "--store", str(store))
    assert again.stdout.startswith("known: sft.checkpoint.ready"), again.stdout + again.stderr
    return store, told.stdout.split()[2]


def run_of_chain(installation: Installation, store: Path) -> FlowRun:
    """The run of dpo-stage/after-sft that the event of ``chain`` starts."""
    (run,) = wait_until(
        lambda: [
            run
            for run in installation.runs_of("dpo-stage/after-sft")
            if str(store.parent) in str(run.parameters)
        ],
        "a run of dpo-stage/after-sft",
    )
    return run


@pytest.fixture(scope="package")
def prepared(installation: Installation, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which everything before the training is done."""
    store = tmp_path_factory.mktemp("prepared") / "store"
    run = installation.start(
        "dpo-stage/manual", {"config": tiny_values(inputs, store, train={"max_steps": 1})}
    )
    done = installation.wait_for_end(run)
    assert done.state.is_completed(), done.state.message
    return without_training(store)


def without_training(store: Path) -> Path:
    """``store``, less the training and what comes after, for one test after the other. A copy for each would do as well,
    as results are read as lying where their store is."""
    for step in ("train", "export", "evaluate", "published", "handoff", "runs"):
        shutil.rmtree(store / step, ignore_errors=True)
    return store
