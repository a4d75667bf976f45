"""An empty Prefect database, made once a run of the tests and copied: its migrations take 10 s."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from flows.serve.database import DATABASE_FILE, remember_database
from tests.left_behind import MARK


def new_prefect_home(folder: Path) -> Path:
    """Put an empty database into ``folder``, as a server that was there before would leave it. -> ``folder``"""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_template(), folder / DATABASE_FILE)
    remember_database(folder)
    return folder


def _template() -> Path:
    """The workers of a run wait for the first that needs it."""
    home = Path(os.environ[MARK]) / "prefect-database"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / DATABASE_FILE).is_file():
            with tempfile.TemporaryDirectory(dir=home) as scratch:
                made = Path(scratch) / DATABASE_FILE
                clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
                subprocess.run(
                    [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"],
                    check=True,
                    capture_output=True,
                    timeout=300,
                    env=clean
                    | {
                        "PREFECT_HOME": scratch,
                        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{made}",
                    },
                )
                made.rename(home / DATABASE_FILE)
    return home / DATABASE_FILE
