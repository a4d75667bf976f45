"""A worker of which something catches whatever is raised while it polls, as libraries do where Python has no other place."""

import sys
import time

from flows.serve.worker import EnduringWorker, main


async def _poll(self: EnduringWorker) -> list:
    print("polls", flush=True)
    try:
        time.sleep(2)
    except BaseException as error:
        print("caught", type(error).__name__, flush=True)
    return []


EnduringWorker.get_and_submit_flow_runs = _poll  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
