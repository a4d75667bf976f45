"""Which Prefect made or migrated a SQLite database. One that is this Prefect's is not looked through for migrations at a
server's start, which takes 3 s."""

from importlib.metadata import version
from pathlib import Path

DATABASE_FILE = "prefect.db"  # in PREFECT_HOME; Prefect's own name
VERSION_FILE = "database-of"
WITHOUT_MIGRATIONS = {"PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false"}


def is_of_this_prefect(prefect_home: Path) -> bool:
    """Return whether the database is there and its tables are those of the installed Prefect."""
    marker = prefect_home / VERSION_FILE
    return (
        (prefect_home / DATABASE_FILE).is_file()
        and marker.is_file()
        and marker.read_text() == version("prefect")
    )


def remember_database(prefect_home: Path) -> None:
    """Note whose database this is, once a server has answered; nothing where it has another one."""
    if (prefect_home / DATABASE_FILE).is_file():
        (prefect_home / VERSION_FILE).write_text(version("prefect"))
