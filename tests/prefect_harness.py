"""A temporary Prefect server for the folders whose tests ask one: each folder's conftest.py has the fixture."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.prefect_database import new_prefect_home


@pytest.fixture(scope="package")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """With the services that one of `pairline run` has. It ends with the folder's tests: idle, it takes a twentieth of a
    core."""
    from prefect.testing import utilities  # seconds, which unit tests do without

    from flows.serve.database import DATABASE_FILE, WITHOUT_MIGRATIONS
    from flows.serve.local_prefect import TEMPORARY_SERVER

    home = new_prefect_home(tmp_path_factory.mktemp("prefect"))
    (home / DATABASE_FILE).rename(home / "prefect-test.db")  # the harness's name
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(utilities, "mkdtemp", lambda: str(home))
        patched.setattr(
            utilities, "atexit", SimpleNamespace(register=lambda *_: None)
        )  # the folder goes with the run's
        without_services = {name: value for name, value in TEMPORARY_SERVER.items() if "_SERVICES_" in name}
        for name, value in (WITHOUT_MIGRATIONS | without_services).items():
            patched.setenv(name, value)
        with utilities.prefect_test_harness(server_startup_timeout=120):
            yield
