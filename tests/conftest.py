"""Rules for every test: unit tests run first, and in CI nothing is skipped. One Prefect server for all that need one."""

import os
from collections.abc import Generator, Iterator

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick answers first: integration tests go to the end, each group in its own order."""
    items.sort(key=lambda item: item.get_closest_marker("integration") is not None)


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


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A temporary server. Starting it takes 13 s, hence once."""
    from prefect.testing.utilities import prefect_test_harness  # seconds, which unit tests do without

    with prefect_test_harness(server_startup_timeout=120):
        yield
