"""Rules for every test: unit tests run first, and in CI nothing is skipped. One Prefect server for all that need one.

``pytest -n N`` runs N workers side by side, each with its own share of the cores: two trainers whose threads wait for each
other's cores are several times slower. A file's tests stay together, and so do those of a folder that shares an engine or
an installation.
"""

import os
from collections.abc import Generator, Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest

from tests.warm.started import COLD, warm_server

TOGETHER = ("containers", "server")  # folders; they take longest and mostly wait, so they begin first


def pytest_configure() -> None:
    """Bind a worker, and all that it starts, to its share of the cores."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        if mine := cores[int(worker.removeprefix("gw"))::int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]:
            os.sched_setaffinity(0, mine)


def _together(node_id: str) -> str:
    """What one worker runs: a file, or a folder of ``TOGETHER``."""
    file = PurePosixPath(node_id.partition("::")[0])
    return next((part for part in file.parts if part in TOGETHER), str(file))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal tests to workers. xdist's own groups by mark are lost with pytest 9.2, whose node ids cannot be renamed."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _together(nodeid)

    return Together(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick answers first: integration tests go to the end, the longest groups at their head, each in its own order."""
    items.sort(key=lambda item: (item.get_closest_marker("integration") is not None, _together(item.nodeid) not in TOGETHER))


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """A skip under ``CI=true`` is a failure: what CI cannot run, it must not call tested."""
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, and CI skips nothing: {report.longrepr[2]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tests that skip."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Modules that skip while they are collected."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def _warm_steps(request: pytest.FixtureRequest) -> Iterator[None]:
    """Steps that integration tests start are forked from a process that has imported everything (tests/warm)."""
    if not any(item.get_closest_marker("integration") for item in request.session.items):
        yield
        return
    with warm_server():
        yield


@pytest.fixture
def cold_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are started as users start them, from nothing."""
    monkeypatch.setenv(COLD, "1")


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A temporary server. Starting it takes 13 s, hence once."""
    from prefect.testing.utilities import prefect_test_harness  # seconds, which unit tests do without

    with prefect_test_harness(server_startup_timeout=120):
        yield
