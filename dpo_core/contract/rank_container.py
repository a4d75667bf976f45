"""Names that a rank's container in a job of a cluster is known by, to the orchestrator and on its node. Standard library
alone."""

import socket
from pathlib import Path

KIND, NAME, SECONDS = "PAIRLINE_CONTAINER", "PAIRLINE_CONTAINER_NAME", "PAIRLINE_CONTAINER_SECONDS"
END_WITH_INPUT = "PAIRLINE_END_WITH_INPUT"  # "1": the container ends when its standard input does
RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    END_WITH_INPUT,
)
START, DRIVER = (
    "pairline.start",
    "pairline.driver",
)  # labels: which start and rank, and the process that ends it
DEADLINE, NETWORK_LABEL = "pairline.deadline", "pairline.network"
OWN_NETWORK = "pairline"
NO_CONTAINER = (
    125,
    126,
    127,
)  # docker's own exit codes: it could not make it, or not start the program in it


def process_mark(pid: int) -> str:
    """Return what names a process for good: host, id, and when it began, as ids are given again. Empty if there is none."""
    try:
        began = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{socket.gethostname()}:{pid}:{began}"
