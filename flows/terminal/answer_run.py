"""``pairline approve`` and ``reject``: answer a run that waits on a Prefect server, as its page does."""

import getpass
from pathlib import Path
from uuid import UUID

from dpo_core.contract.errors import ConfigError, RemoteError, StoreError
from flows.serve.local_prefect import prepare_prefect, running_server, uses_configured_server
from tasks.gate.approval import Verdict
from tasks.run.find import find_run
from tasks.run.folder import read_run


def answer_run(store: Path, run_name: str, decision: Verdict, name: str, reason: str) -> str:
    """Hand the decision to the run. -> what was done, as a sentence

    Raises ``ConfigError``, ``StoreError``, and ``RemoteError`` if the server does not answer.
    """
    folder = find_run(run_name, store)
    run_name, record = folder.name, read_run(folder)
    if not (uses_configured_server() or running_server(store)):
        raise ConfigError(
            "No Prefect server is configured (PREFECT_API_URL) or runs here (`pairline up`). A run without "
            "one asks at its own terminal."
        )
    prepare_prefect(store)
    if record.flow_run_id is None:
        raise StoreError(f"{run_name} does not say which flow run it is; answer on its page.")
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.responses import SetStateStatus

    given = {"decision": decision, "name": name or getpass.getuser(), "reason": reason}
    try:
        with get_client(sync_client=True) as client:
            response = client.resume_flow_run(UUID(record.flow_run_id), run_input=given)
    except HTTPError as error:
        raise RemoteError(
            f"The Prefect server did not confirm the answer ({error}). The run's page shows whether it "
            "arrived; if the run still waits, answer again."
        ) from error
    if response.status != SetStateStatus.ACCEPT:
        raise ConfigError(
            f"{run_name} takes no answer now: {getattr(response.details, 'reason', response.status)} A slow "
            "server may have taken this one before: the run's page shows who decided."
        )
    return f"{run_name}: {decision} by {given['name']}"
