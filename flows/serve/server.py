"""`python -m flows.serve.server PORT`: Prefect's server as `prefect server start` has it (one process with all services, the
same settings), and before it the checks of allowed_requests.py. `pairline up` starts it."""

import os
import sys

from dpo_core.contract.importing import importing
from flows.serve.allowed_requests import AllowedRequests
from flows.serve.run_processes import SERVER_VARIABLE
from flows.serve.settings import HOST, settings_from_environment


def main(port: int) -> None:
    """Serve until SIGTERM."""
    with importing():
        import uvicorn
        from prefect.server.api.server import create_app
        from prefect.settings import get_current_settings

    settings, own = get_current_settings().server, settings_from_environment()
    app = AllowedRequests(
        create_app(final=True),
        own.model_copy(update={"port": port}).ui_url,
        frozenset(own.host_names),
        frozenset(settings.api.cors_allowed_origins.split(",")),
        os.environ[SERVER_VARIABLE],
    )
    os.umask(0o077)  # its database above all; the pages' files, unpacked above, are no secret
    uvicorn.run(
        app,
        host=HOST,
        port=port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        log_level=settings.logging_level.lower(),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
