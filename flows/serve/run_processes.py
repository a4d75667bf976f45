"""Processes of this machine that belong to Prefect runs, by what Prefect's worker puts into their environment.

The steps of a run do not inherit it (tasks/launch/process.py), so what is found are the flows themselves.
"""

import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

RUN_VARIABLE, API_VARIABLE = "PREFECT__FLOW_RUN_ID", "PREFECT_API_URL"
SERVER_VARIABLE, CLIENT_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"  # the password


def processes_of_run(flow_run_id: UUID) -> list[int]:
    """Return ids of live processes that run the flow. Those of other users and machines cannot be seen."""
    return _processes(
        lambda environment: environment.get(RUN_VARIABLE) in (str(flow_run_id), flow_run_id.hex)
    )


def processes_of_server(api_url: str) -> list[int]:
    """Return ids of live processes that run a flow of the server at ``api_url``."""
    return _processes(
        lambda environment: RUN_VARIABLE in environment and environment.get(API_VARIABLE) == api_url
    )


def servers_at(api_url: str) -> list[int]:
    """Return ids of this user's live servers that `pairline up` started for ``api_url``."""
    servers = _processes(
        lambda environment: SERVER_VARIABLE in environment and environment.get(API_VARIABLE) == api_url
    )
    return [pid for pid in servers if Path(f"/proc/{pid}").stat().st_uid == os.geteuid()]


def environment_of(pid: int) -> dict[str, str]:
    """Return what a process was started with. Raises ``OSError`` if it is gone or another user's."""
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _processes(wanted: Callable[[dict[str, str]], bool]) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            pid = int(file.parent.name)
            if wanted(environment_of(pid)) and not _is_zombie(file.parent):
                found.append(pid)
        except OSError:
            continue
    return sorted(found)


def _is_zombie(process: Path) -> bool:
    """Whether the process has ended and only waits to be collected. Raises ``OSError`` if it is gone."""
    return (process / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
