"""Whether the deployments on the server are those of this code still: then `pairline up` leaves them alone.

Bringing them there takes seconds, and makes their automations anew, which miss the events of that moment.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from prefect.client.orchestration import get_client

from dpo_core.contract.store import write_bytes
from flows.serve.settings import PROJECT

DEPLOYED_FILE = "deployed"  # in the folder of the server: what was seen after the last time
CODE = ("flows", "tasks", "dpo_core")  # what the forms and their defaults are made of
CHANGES_BY_ITSELF = {"updated", "last_polled", "status"}  # with each look of a worker


def is_deployed(folder: Path) -> bool:
    """Return whether neither the code nor what the server holds has changed since ``remember_deployed``."""
    file = folder / DEPLOYED_FILE
    return file.is_file() and file.read_text() == _seen()


def remember_deployed(folder: Path) -> None:
    """Note that they are all there."""
    write_bytes(folder / DEPLOYED_FILE, _seen().encode())


def _seen() -> str:
    """A hash of both sides."""
    digest = hashlib.sha256(version("prefect").encode())
    for file in (
        PROJECT / "prefect.yaml",
        *sorted(path for room in CODE for path in (PROJECT / room).rglob("*.py")),
    ):
        digest.update(
            f"{file.relative_to(PROJECT)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()
        )
    with get_client(sync_client=True) as client:
        deployments = [
            one.model_dump(mode="json", exclude=CHANGES_BY_ITSELF)
            for one in client.read_deployments(limit=200)
        ]
        automations = client.request("POST", "/automations/filter", json={}).json()
    digest.update(json.dumps(sorted(deployments, key=lambda one: one["id"]), sort_keys=True).encode())
    digest.update(json.dumps(sorted((one["id"], one["updated"]) for one in automations)).encode())
    return digest.hexdigest()
