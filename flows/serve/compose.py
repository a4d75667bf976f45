"""What the service `deploy` of images/compose.yaml does: bring pool, deployments, limits and automations to a server.

The server is the one of PREFECT_API_URL. `pairline up` does the same beside starting one.
"""

import os
import sys

from dpo_core.errors import PairlineError
from flows.serve.settings import settings_from_environment
from flows.serve.up import deploy


def main() -> int:
    """Exit status 0 when everything is there."""
    from flows.serve.server_objects import prepare_limits_and_automations, prepare_pool

    try:
        settings = settings_from_environment()
        prepare_pool(settings)
        deploy(dict(os.environ))
        print(prepare_limits_and_automations(settings))
    except PairlineError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
