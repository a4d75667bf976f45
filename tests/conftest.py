"""Rules for every test: unit tests run first, and in CI nothing is skipped.

``pytest -n N`` runs N workers side by side. What they start has one thread each: two trainers whose threads wait for each
other's cores are several times slower. A file's tests stay together, and so do those of a folder that shares an engine or an
installation.
"""

import os
import signal
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import settings

from dpo_core.contract.importing import importing
from tests.warm.started import ROOT, warm_servers

pytest_plugins = ["tests.left_behind"]
# What needs a library of an environment of its own: `make test` runs each folder there.
ELSEWHERE = {"olmo_core": "olmo_core", "lm_eval": "lm_eval_harness"}
collect_ignore = [folder for library, folder in ELSEWHERE.items() if not find_spec(library)]
KEPT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pairline-tests"  # outlives a run
# Groups that share an engine or an installation of `pairline up`, by the beginnings of their paths, and the longest file of
# each other environment. They take longest, and most of them wait, so they begin first.
TOGETHER = {
    "engine of its own": ("tests/containers/launch/",),
    "engine": ("tests/containers/",),
    "server": ("tests/server/",),
    "cluster": ("tests/slurm_cluster/",),
    "OLMo-core": ("tests/olmo_core/test_runs",),
    "lm-evaluation-harness": ("tests/lm_eval_harness/test_smollm2",),
}


def pytest_configure() -> None:
    """One thread for a worker and all that it starts, on whichever core is free: bound to a core of its own, it would wait
    for that one while the other is idle. Compiled kernels (flex_attention, a minute) are kept from run to run."""
    settings.register_profile(
        "unhurried", parent=settings(), deadline=None
    )  # an example may wait for others' programs
    settings.load_profile("unhurried")
    # A shell has what it leaves in the background ignore Ctrl-C, and so would what tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(KEPT / "inductor"))
    # Prefect would start a server of its own for a test that asks without `prefect_server`, and end it after the run.
    os.environ["PREFECT_SERVER_EPHEMERAL_ENABLED"] = "false"
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def _together(node_id: str) -> str:
    """What one worker runs: a file, or a group of ``TOGETHER``."""
    groups = (group for group, beginnings in TOGETHER.items() if node_id.startswith(beginnings))
    return next(groups, node_id.partition("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal tests to workers. xdist's own groups by mark are lost with pytest 9.2, whose node ids cannot be renamed."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _together(nodeid)

    return Together(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """No cyclic garbage is looked for while everything is imported, nor in what was imported: a third of that time."""
    with importing():
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick answers first: integration tests go to the end, the longest groups at their head, each in its own order, but for
    what waits until the trainer image is made."""
    items.sort(
        key=lambda item: (
            item.get_closest_marker("integration") is not None,
            _together(item.nodeid) not in TOGETHER,
            "trainer" in getattr(item, "fixturenames", ()),
        )
    )


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where the time went: seconds of all workers together by folder, with the file that took most of them."""
    seconds: dict[str, dict[str, float]] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            file = PurePosixPath(report.nodeid.partition("::")[0])
            of_folder = seconds.setdefault(str(file.parent), {})
            of_folder[file.name] = of_folder.get(file.name, 0.0) + report.duration
    terminalreporter.section("seconds by folder")
    for folder, files in sorted(seconds.items(), key=lambda item: -sum(item[1].values())):
        longest = max(files, key=files.__getitem__)
        terminalreporter.write_line(
            f"{sum(files.values()):8.1f}  {folder:32}  {longest} {files[longest]:.1f}"
        )


@pytest.fixture(scope="session", autouse=True)
def _warm_steps(request: pytest.FixtureRequest) -> Iterator[None]:
    """Steps and runs that integration tests start are forked from processes that have imported everything (tests/warm)."""
    if not any(item.get_closest_marker("integration") for item in request.session.items):
        yield
        return
    with warm_servers():
        yield


@pytest.fixture
def cold_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are started as users start them, from nothing."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
