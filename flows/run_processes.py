"""Processes of this machine that belong to Prefect runs, by what Prefect's worker puts into their environment.

The steps of a run do not inherit it (tasks/launch/process.py), so what is found are the flows themselves.
"""

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

RUN_VARIABLE, API_VARIABLE = "PREFECT__FLOW_RUN_ID", "PREFECT_API_URL"


def processes_of_run(flow_run_id: UUID) -> list[int]:
    """Ids of live processes that run the flow. Those of other users and machines cannot be seen."""
    return _processes(lambda environment: environment.get(RUN_VARIABLE) in (str(flow_run_id), flow_run_id.hex))


def processes_of_server(api_url: str) -> list[int]:
    """Ids of live processes that run a flow of the server at ``api_url``."""
    return _processes(lambda environment: RUN_VARIABLE in environment and environment.get(API_VARIABLE) == api_url)


def _processes(wanted: Callable[[dict[str, str]], bool]) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            lines = file.read_bytes().decode(errors="replace").split("\0")
            if wanted(dict(line.split("=", 1) for line in lines if "=" in line)) and not _is_zombie(file.parent):
                found.append(int(file.parent.name))
        except OSError:
            continue
    return sorted(found)


def _is_zombie(process: Path) -> bool:
    """Whether the process has ended and only waits to be collected. Raises ``OSError`` if it is gone."""
    return (process / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
