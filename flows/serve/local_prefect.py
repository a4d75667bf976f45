"""Prefect for a run from the command line: the server that is configured, or a temporary one beside the store.

Must be applied before Prefect is imported, as it reads its settings then. Anything set in the environment wins.
"""

import contextlib
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

from dpo_core.contract.errors import from_os_error
from flows.serve import database
from flows.serve.background import Background
from flows.serve.credential import API_URL_FILE, given_credential, new_credential, use_credential
from flows.serve.private_folder import make_private
from flows.serve.run_processes import CLIENT_VARIABLE, SERVER_VARIABLE
from flows.serve.settings import RUN_SETTINGS, VARIABLES, names_the_database
from flows.serve.temporary_server import start_temporary_server

# The temporary server lives as long as the run, so what serves schedules, workers and automations stays off: its start
# takes 2-3 s of CPU less. Records stay in <store>/prefect/prefect.db; `PREFECT_HOME=<store>/prefect prefect server start`
# shows them.
TEMPORARY_SERVER = {
    "PREFECT_API_REQUEST_TIMEOUT": "120",  # the first request may wait for its start on a busy machine
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",  # of the client, which would announce it above the bars otherwise
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "https://nobody.invalid",  # it has no pages; Prefect's own is any page
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",  # it is stopped at exit and would complain about it
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
}
# Set where the server of PREFECT_API_URL ends with the run: nobody can answer on its pages, or find the run there later.
ENDS_WITH_THE_RUN = "PAIRLINE_SERVER_ENDS_WITH_THE_RUN"
# Bars and the closing table are what the terminal shows; the log is in the run's folder and in Prefect.
QUIET_TERMINAL = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "PREFECT_CLI_COLORS": "false"}


def start_prefect(store_root: Path) -> Callable[[], None]:
    """Set Prefect's settings, and start a server for this run where no other is configured or runs here. Before Prefect is
    imported. -> what waits until a server that was started answers

    Raises ``StoreError`` or ``DiskFull`` if the store cannot be made.
    """
    if not prepare_prefect(store_root):
        return lambda: None
    server = start_temporary_server(Path(os.environ["PREFECT_HOME"]))
    os.environ["PREFECT_API_URL"], os.environ[ENDS_WITH_THE_RUN] = server.api_url, "1"

    def wait() -> None:
        server.wait()
        remember_database(store_root)  # it is migrated now

    return wait


def has_own_server(store_root: Path) -> bool:
    """Return whether a run from here would get a temporary server: nobody configured one, and none of `pairline up`
    lives.
    """
    return not uses_configured_server() and running_server(store_root) is None


def server_outlives_the_run() -> bool:
    """Return whether the run's server is one that people and other runs know. Imports Prefect."""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() is not None and ENDS_WITH_THE_RUN not in os.environ


def uses_configured_server() -> bool:
    """Return whether the user has a Prefect server or profile of their own."""
    if "PREFECT_API_URL" in os.environ or "PREFECT_PROFILE" in os.environ:
        return True
    return _profiles().is_file() and "PREFECT_API_URL" in _profiles().read_text()


def _profiles() -> Path:
    return Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser() / "profiles.toml"


def use_password(store_root: Path) -> None:
    """Have the password of the configured server, by environment or profile, if `pairline up` of this user started it."""
    configured: dict[str, str] = {}
    with contextlib.suppress(OSError, tomllib.TOMLDecodeError, AttributeError):
        profiles = tomllib.loads(_profiles().read_text())
        configured = profiles.get("profiles", {}).get(
            os.environ.get("PREFECT_PROFILE") or profiles.get("active"), {}
        )
    url = os.environ.get("PREFECT_API_URL") or configured.get("PREFECT_API_URL")
    if url and CLIENT_VARIABLE not in configured:
        use_credential(url, serve_folder(store_root))


def serve_folder(store_root: Path) -> Path:
    """Return where `pairline up` keeps its server's state: beside the store unless PAIRLINE_HOME says where else."""
    return Path(os.environ.get(VARIABLES["home"]) or store_root).expanduser().resolve() / "serve"


def running_server(store_root: Path) -> str | None:
    """Return the API address of the server that `pairline up` started, if it lives."""
    folder = serve_folder(store_root)
    if Background("server", folder).pid() is None or not (folder / API_URL_FILE).is_file():
        return None
    return (folder / API_URL_FILE).read_text().strip()


def _home(store_root: Path) -> Path:
    """Prefect's folder: the user's own choice, else in the store."""
    given = os.environ.get("PREFECT_HOME")
    return Path(given).expanduser() if given else store_root.expanduser().resolve() / "prefect"


def _has_database_in_home() -> bool:
    return not any(map(names_the_database, os.environ))


def _prepare_home(home: Path) -> None:
    """Make Prefect's folder, which is this user's alone. In a store that is shared it may be another's, and stays so; so
    does one that the user has already."""
    if home.is_dir() and (home.stat().st_uid != os.geteuid() or "PREFECT_HOME" in os.environ):
        return
    make_private(home)  # Prefect makes no parents, and then waits for its server in vain
    if _has_database_in_home():
        (home / database.DATABASE_FILE).touch(mode=0o600)  # else its server makes it as the umask has it


def prepare_prefect(store_root: Path) -> bool:
    """Set what is not set. -> whether the run uses a temporary server

    Raises ``StoreError`` or ``DiskFull`` if the store cannot be made.
    """
    settings = dict(QUIET_TERMINAL)
    temporary = not uses_configured_server()
    if temporary and (url := running_server(store_root)):
        # Two servers on one database would lock each other out.
        settings["PREFECT_API_URL"], temporary = url, False
    if temporary:
        home = _home(store_root)
        try:
            _prepare_home(home)
        except OSError as error:
            raise from_os_error(error, "making the store") from error
        password = given_credential() or new_credential()  # it listens on loopback, where anyone may ask
        settings |= TEMPORARY_SERVER | {
            "PREFECT_HOME": str(home),
            SERVER_VARIABLE: password,
            CLIENT_VARIABLE: password,
        }
        if _has_database_in_home() and database.is_of_this_prefect(home):
            settings |= database.WITHOUT_MIGRATIONS
    else:
        settings |= RUN_SETTINGS
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if not temporary:
        use_password(store_root)
    return temporary


def remember_database(store_root: Path) -> None:
    """Note, after a run with a temporary server, that its database is that of the installed Prefect."""
    if _has_database_in_home():
        database.remember_database(_home(store_root))
