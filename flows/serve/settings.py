"""What `pairline up` starts and where: a few variables of the environment, and the settings of Prefect that follow."""

import os
import re
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpo_core.contract.errors import ConfigError
from flows.serve.credential import given_credential, kept_credential
from flows.serve.database import WITHOUT_MIGRATIONS, is_of_this_prefect
from flows.serve.run_processes import CLIENT_VARIABLE, SERVER_VARIABLE

VARIABLES = {
    "home": "PAIRLINE_HOME",
    "port": "PAIRLINE_PORT",
    "database_url": "PAIRLINE_DATABASE_URL",
    "max_runs": "PAIRLINE_MAX_RUNS",
    "training_slots": "PAIRLINE_TRAINING_SLOTS",
    "allowed_hosts": "PAIRLINE_ALLOWED_HOSTS",
}
HEARTBEAT_SECONDS = 30  # Prefect's own lower bound
# What Pairline sets of Prefect: `pairline up` and images/compose.yaml start their processes with it, and what the
# environment says wins. Of every run that talks to a server which outlives it, from a form or from the command line:
RUN_SETTINGS = {
    # A dead run is told by heartbeats that stay away (flows/serve/server_objects.py). Prefect's own 180 s would be too late.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    # Waits of 2, 4, 8 ... s: a server may be away for eight minutes before a run gives it up.
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    # What a server answers whose database does not; 429, 502 and 503 are waited for anyway.
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
}
# Of the server: how long its database may take, as its disk may be kept busy by others (Prefect's own: 10, 5 and 30 s).
DATABASE_PATIENCE = {
    "PREFECT_SERVER_DATABASE_TIMEOUT": "300",
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "300",
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_TIMEOUT": "300",
}
SERVER_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # A run that is cancelled while its worker is away is Cancelled after this, not after 5 minutes.
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "90",
    # Who holds a slot is known after a restart of the server, too.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "flows.serve.lease_storage",
    # A crash is acted on after a restart, too.
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "flows.serve.event_order",
}
WORKER_SETTINGS = {
    "PREFECT_WORKER_ENABLE_CANCELLATION": "true",  # of runs that have not begun yet
    "PREFECT_WORKER_CANCELLATION_POLL_SECONDS": "5",
    "PREFECT_WORKER_QUERY_SECONDS": "5",
}
OF_ALL = {"DO_NOT_TRACK": "1", "PREFECT_CLI_COLORS": "false"}
# What the server gets of the environment: the system's, the interpreter's and Prefect's own, and what its database's driver
# and its webhooks need. Tokens of the Hub, of trackers and of clouds are for runs.
SERVER_NEEDS = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|VIRTUAL_ENV|PYTHON\w+|DO_NOT_TRACK|PG\w+"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|(HTTP|HTTPS|NO)_PROXY|(http|https|no)_proxy|PREFECT_(?!API_KEY)\w+"
)
HOST = "127.0.0.1"
POOL = "pairline"
PROJECT = Path(__file__).resolve().parents[2]  # where prefect.yaml and the recipes are


class ServeSettings(BaseModel):
    """One installation: a server, its worker, and the folder that holds their state."""

    model_config = ConfigDict(frozen=True)

    home: Path = Field(Path(".pairline"), description="Folder of server and worker.")
    port: int = Field(4200, ge=1, le=65535, description="Port of server and UI, on loopback.")
    database_url: str | None = Field(
        None, description="postgresql+asyncpg://user:password@host/name; empty: SQLite."
    )
    max_runs: int = Field(
        8, ge=1, le=100_000, description="Runs that the worker holds at once, waiting ones included."
    )
    training_slots: int = Field(
        1, ge=1, le=100_000, description="Runs that may train at once on this machine."
    )
    allowed_hosts: str = Field(
        "",
        description="Names with commas between, by which the server may be asked for beside "
        "127.0.0.1 and localhost.",
    )

    @property
    def folder(self) -> Path:
        """Process ids, logs and Prefect's own folder."""
        return self.home / "serve"

    @property
    def prefect_home(self) -> Path:
        """Prefect's own folder, with its SQLite database."""
        return self.folder / "prefect"

    @property
    def api_url(self) -> str:
        return f"http://{HOST}:{self.port}/api"

    @property
    def ui_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def host_names(self) -> list[str]:
        """``allowed_hosts`` one by one."""
        return [name for part in self.allowed_hosts.split(",") if (name := part.strip().lower())]

    @property
    def credential(self) -> str | None:
        """The server's password, once `pairline up` has made it. Raises ``ConfigError`` if the environment says two."""
        return given_credential() or kept_credential(self.folder)

    def worker_argv(self, name: str) -> list[str]:
        """Return the command line of the worker that is called ``name`` on its server."""
        own = ["--pool", POOL, "--name", name, "--limit", str(self.max_runs)]
        return [sys.executable, "-m", "flows.serve.worker", *own]

    def server_environment(self) -> dict[str, str]:
        """Return the environment of the server, which alone may know the database's password, and no other secret than
        the two.
        """
        given = {name: value for name, value in os.environ.items() if names_the_database(name)}
        if self.database_url:
            given["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = self.database_url
        known = WITHOUT_MIGRATIONS if not given and is_of_this_prefect(self.prefect_home) else {}
        own = {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.ui_url}  # Prefect's own is any page
        needed = {name: value for name, value in self.environment().items() if SERVER_NEEDS.fullmatch(name)}
        fixed = {SERVER_VARIABLE: self.credential, VARIABLES["allowed_hosts"]: self.allowed_hosts}
        return (
            own
            | needed
            | DATABASE_PATIENCE
            | known
            | given
            | {name: value for name, value in fixed.items() if value}
        )

    def environment(self) -> dict[str, str]:
        """Return the environment of worker, deployment and so of every run.

        A variable that is set already wins, except those that decide where things are.
        """
        credential = self.credential
        fixed = {
            "PREFECT_HOME": str(self.prefect_home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_API_URL": self.api_url,  # without it the pages ask port 4200 whatever the server's own is
            "PREFECT_UI_URL": self.ui_url,
            "PREFECT_PROFILES_PATH": str(self.prefect_home / "profiles.toml"),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH", "")))),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
            **({CLIENT_VARIABLE: credential} if credential else {}),
        }
        defaults = RUN_SETTINGS | SERVER_SETTINGS | WORKER_SETTINGS | OF_ALL
        given = {
            name: value
            for name, value in os.environ.items()
            if not names_the_database(name) and name != SERVER_VARIABLE
        }
        return {**defaults, **given, **fixed}


def names_the_database(variable: str) -> bool:
    """Return whether an environment variable may hold the database's address with its password, or the password."""
    return variable.startswith(
        (VARIABLES["database_url"], "PREFECT_SERVER_DATABASE_", "PREFECT_API_DATABASE_")
    )


def settings_from_environment() -> ServeSettings:
    """Return the settings of this machine. Raises ``ConfigError`` that names the variable."""
    given = {name: os.environ[variable] for name, variable in VARIABLES.items() if os.environ.get(variable)}
    try:
        settings = ServeSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{VARIABLES[str(first['loc'][0])]} is {first['input']!r}: {first['msg']}."
        ) from None
    return settings.model_copy(update={"home": settings.home.expanduser().resolve()})
