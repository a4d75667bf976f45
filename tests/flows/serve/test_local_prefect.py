"""The temporary server's settings: nothing of the user's is overridden, and a known database is not migrated again."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from dpo_core.contract.errors import PairlineError, StoreError
from flows.serve.background import Background, start_time
from flows.serve.credential import API_URL_FILE, CREDENTIAL_FILE
from flows.serve.local_prefect import prepare_prefect, remember_database, start_prefect
from flows.serve.run_processes import CLIENT_VARIABLE, SERVER_VARIABLE
from flows.serve.server_objects import SECONDS_WITHOUT_HEARTBEAT
from flows.serve.settings import PROJECT
from tests.prefect_database import new_prefect_home
from tests.waiting import wait_until

MIGRATE = "PREFECT_SERVER_DATABASE_MIGRATE_ON_START"


@pytest.fixture
def no_prefect_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """An environment without Prefect's names, and a home without profiles."""
    environment = {"HOME": str(tmp_path)}
    monkeypatch.setattr("os.environ", environment)
    return environment


def test_without_a_server_prefect_lives_in_the_store(no_prefect_settings, tmp_path):
    assert prepare_prefect(tmp_path / "store")
    assert no_prefect_settings["PREFECT_HOME"] == str(tmp_path / "store" / "prefect")
    assert MIGRATE not in no_prefect_settings
    assert no_prefect_settings[SERVER_VARIABLE] == no_prefect_settings[CLIENT_VARIABLE]


def test_a_configured_server_is_used_and_the_store_left_alone(no_prefect_settings, tmp_path):
    no_prefect_settings["PREFECT_API_URL"] = "http://127.0.0.1:4200/api"
    assert not prepare_prefect(tmp_path / "store")
    assert "PREFECT_HOME" not in no_prefect_settings
    assert not (tmp_path / "store").exists()


def test_a_run_on_a_server_that_watches_it_gives_signs_of_life_in_time(no_prefect_settings, tmp_path):
    no_prefect_settings["PREFECT_API_URL"] = "http://127.0.0.1:4200/api"
    prepare_prefect(tmp_path / "store")
    assert 2 * int(no_prefect_settings["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) < SECONDS_WITHOUT_HEARTBEAT
    assert int(no_prefect_settings["PREFECT_CLIENT_MAX_RETRIES"]) == 8


def test_a_heartbeat_that_is_set_stays(no_prefect_settings, tmp_path):
    no_prefect_settings |= {
        "PREFECT_API_URL": "http://127.0.0.1:4200/api",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "45",
    }
    prepare_prefect(tmp_path / "store")
    assert no_prefect_settings["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "45"


@pytest.mark.parametrize(("made_by", "skips"), [(version("prefect"), True), ("2.0", False)])
def test_migrations_are_looked_for_once_per_version(no_prefect_settings, tmp_path, made_by, skips):
    prepare_prefect(tmp_path)
    (tmp_path / "prefect" / "prefect.db").touch()
    remember_database(tmp_path)
    (tmp_path / "prefect" / "database-of").write_text(made_by)
    prepare_prefect(tmp_path)
    assert (no_prefect_settings.get(MIGRATE) == "false") is skips


def test_a_folder_of_prefect_s_that_the_user_names_is_made_and_its_database_looked_through_by_itself(
    no_prefect_settings, tmp_path
):
    """Whatever is known of the database in the store."""
    prepare_prefect(tmp_path / "store")
    remember_database(tmp_path / "store")  # as behind a server that has answered
    home = tmp_path / "new" / "home"
    no_prefect_settings["PREFECT_HOME"] = str(home)
    prepare_prefect(tmp_path / "store")
    assert home.stat().st_mode & 0o777 == 0o700
    assert MIGRATE not in no_prefect_settings
    remember_database(tmp_path / "store")
    assert (home / "database-of").read_text() == version("prefect")
    prepare_prefect(tmp_path / "store")
    assert no_prefect_settings[MIGRATE] == "false"


def test_a_folder_of_prefect_s_that_the_user_has_is_left_as_it_is(no_prefect_settings, tmp_path):
    (tmp_path / "home").mkdir(mode=0o755)
    no_prefect_settings["PREFECT_HOME"] = str(tmp_path / "home")
    prepare_prefect(tmp_path / "store")
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o755
    assert not list((tmp_path / "home").iterdir())


def test_a_database_elsewhere_is_always_looked_through(no_prefect_settings, tmp_path):
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").touch()
    remember_database(tmp_path)
    (tmp_path / "prefect" / "database-of").write_text("an older one")
    no_prefect_settings["PREFECT_API_DATABASE_CONNECTION_URL"] = "sqlite+aiosqlite:////elsewhere.db"
    remember_database(tmp_path)
    assert (tmp_path / "prefect" / "database-of").read_text() == "an older one"
    (tmp_path / "prefect" / "database-of").write_text(version("prefect"))
    prepare_prefect(tmp_path)
    assert MIGRATE not in no_prefect_settings


def test_a_store_below_a_file_is_refused(no_prefect_settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="making the store"):
        prepare_prefect(tmp_path / "file" / "store")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_server_that_up_started_is_found(no_prefect_settings, tmp_path, elsewhere):
    store = tmp_path / "store"
    home = tmp_path / "home" if elsewhere else store
    if elsewhere:
        no_prefect_settings["PAIRLINE_HOME"] = str(home)
    server = Background("server", home / "serve")
    server.folder.mkdir(parents=True)
    server.pid_file.write_text(f"{os.getpid()} {start_time(os.getpid())}\n")
    (server.folder / API_URL_FILE).write_text("http://127.0.0.1:4321/api")
    (server.folder / CREDENTIAL_FILE).write_text("pairline:made\n")
    assert not prepare_prefect(store)
    assert no_prefect_settings["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    assert no_prefect_settings[CLIENT_VARIABLE] == "pairline:made"


@pytest.mark.parametrize(("more", "told"), [("", True), ('PREFECT_API_AUTH_STRING = "ann:hers"', False)])
def test_a_profile_that_names_the_server_of_up_gets_in(no_prefect_settings, tmp_path, more, told):
    url = "http://127.0.0.1:4321/api"
    folder = tmp_path / "store" / "serve"
    folder.mkdir(parents=True)
    (folder / API_URL_FILE).write_text(url)
    (folder / CREDENTIAL_FILE).write_text("pairline:made\n")
    no_prefect_settings["PREFECT_HOME"] = str(tmp_path)
    (tmp_path / "profiles.toml").write_text(
        f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{url}"\n{more}\n'
    )
    assert not prepare_prefect(tmp_path / "store")
    assert no_prefect_settings.get(CLIENT_VARIABLE) == ("pairline:made" if told else None)


AS_A_RUN = """
import http.client, sys
from pathlib import Path
from flows.serve.local_prefect import start_prefect
wait_for_server = start_prefect(Path(sys.argv[1]))
from prefect.client.orchestration import get_client
wait_for_server()
with get_client(sync_client=True) as client:
    client.read_flows()
    server = http.client.HTTPConnection(client.api_url.host, client.api_url.port)
    page = {"Origin": "http://evil.example"}
    for method, headers in (("POST", page), ("POST", {}), ("OPTIONS", page | {"Access-Control-Request-Method": "POST"})):
        server.request(method, "/api/flows/filter", body="{}", headers=headers)
        answer = server.getresponse()
        answer.read()
        print(answer.status, answer.getheader("access-control-allow-origin"))
"""


@pytest.mark.integration
def test_the_temporary_server_answers_its_run_alone(tmp_path):
    """It listens on loopback, where any page and any user may ask."""
    new_prefect_home(tmp_path / "store" / "prefect")
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PAIRLINE_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", AS_A_RUN, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        env=own | {"PYTHONPATH": str(PROJECT), "HOME": str(tmp_path)},
        cwd=tmp_path,
        check=False,
        timeout=300,
    )
    assert done.stdout.splitlines() == ["401 None", "401 None", "400 None"], done.stderr
    assert (tmp_path / "store/prefect").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "store/prefect/prefect.db").stat().st_mode & 0o777 == 0o600


HOLDS_A_SERVER = """
import sys, time
from pathlib import Path
from flows.serve.local_prefect import start_prefect
wait_for_server = start_prefect(Path(sys.argv[1]))
if sys.argv[2] == "answers":
    wait_for_server()
print("held", flush=True)
time.sleep(600)
"""


def servers_of(run: subprocess.Popen) -> list[int]:
    """Ids of the live processes that were started as the run's server."""
    asked = b"flows.serve.temporary_server\0"
    found = Path("/proc").glob("[0-9]*/cmdline")
    return [
        int(path.parent.name)
        for path in found
        if asked in (line := read_or_nothing(path)) and line.split(b"\0")[-2] == str(run.pid).encode()
    ]


def read_or_nothing(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.mark.integration
@pytest.mark.parametrize("moment", ["starts", "answers"])
def test_the_temporary_server_dies_with_its_run_however_that_dies(tmp_path, moment):
    new_prefect_home(tmp_path / "store" / "prefect")
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PAIRLINE_"))
    }
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_SERVER, str(tmp_path / "store"), moment],
        stdout=subprocess.PIPE,
        env=own | {"PYTHONPATH": str(PROJECT), "HOME": str(tmp_path)},
        cwd=tmp_path,
    ) as run:
        try:
            assert run.stdout.readline() == b"held\n"
            # The kernel shows a new program's arguments a moment after it has told that it runs.
            wait_until(lambda: len(servers_of(run)) == 1, "its server")
        finally:
            run.kill()
    wait_until(lambda: not servers_of(run), "the end of the server")


def test_a_server_that_cannot_start_is_told_with_its_last_lines(no_prefect_settings, tmp_path):
    """Not as a refused connection, which says nothing of why."""
    no_prefect_settings["PYTHONHOME"] = str(tmp_path)  # where no interpreter finds its library
    wait_for_server = start_prefect(tmp_path / "store")
    with pytest.raises(PairlineError, match=r"ended with exit code 1(.|\n)*temporary-server\.log"):
        wait_for_server()
