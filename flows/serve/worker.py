"""The worker of an installation: Prefect's process worker, which no failed request ends.

Prefect's own ends as a whole where one request about one run fails: reading the deployment of a run that it is about to
start (`BaseWorker._submit_run`) has no `except`, so a server that is busy for the length of a client's patience leaves an
installation without a worker, and the run scheduled for ever. It also ends once its polls failed twelve times in a row.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from anyio import to_thread
from anyio.abc import TaskStatus
from prefect.client.schemas.objects import FlowRun
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from dpo_core.contract.visible import one_line
from flows.serve.cancelled_runs import end_what_is_left
from tasks.text.terminal import say

FAILED = object()


class EnduringWorker(ProcessWorker):
    """Tries what failed again with its next poll, and says once what is wrong."""

    _trouble = ""

    @classmethod
    def __dispatch_key__(cls) -> str:
        return "pairline-process"  # Prefect's registry of types keeps its own class; the pool's type stays "process"

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Return the runs that are started now; none where the server cannot say."""
        return await self._enduring(super().get_and_submit_flow_runs, otherwise=[])

    async def _sync_and_initialize(self) -> None:
        if not self.is_setup:  # what is wrong from the start, a password for example, ends the start
            await super()._sync_and_initialize()
        else:
            await self._enduring(super()._sync_and_initialize)

    async def _submit_run(self, flow_run: FlowRun) -> None:
        submit = super()._submit_run
        if await self._enduring(lambda: submit(flow_run), otherwise=FAILED) is FAILED:
            self._submitting_flow_run_ids.discard(flow_run.id)  # the next poll finds it again
            if self._cancelling_observer is not None:
                self._cancelling_observer.remove_in_flight_flow_run_id(flow_run.id)
            self._release_limit_slot(flow_run.id)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run a flow to its end, and what it leaves behind if it is cancelled."""
        result = await super().run(flow_run, configuration, task_status)
        ended = await self._enduring(lambda: to_thread.run_sync(end_what_is_left, flow_run.id), otherwise=[])
        for one in ended:
            self._logger.info("%s of the cancelled run %s: %s.", one.name, flow_run.name, one.done)
        return result

    async def _cancel_run(self, flow_run_id: UUID) -> None:
        cancel = super()._cancel_run
        await self._enduring(lambda: cancel(flow_run_id))

    async def _enduring(self, ask: Callable[[], Awaitable[Any]], otherwise: Any = None) -> Any:
        """What ``ask`` gives; ``otherwise`` where it fails, which is said once for as long as the sentence is the same."""
        try:
            given = await ask()
        except Exception as error:
            trouble = one_line(f"{type(error).__name__}: {error}")
            if trouble != self._trouble:
                self._logger.exception("The server is asked again in a while. %s", trouble)
            self._trouble = trouble
            return otherwise
        self._trouble = ""
        return given


def main(argv: list[str]) -> int:
    """Work until SIGTERM or SIGINT, then let the runs of this worker end."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve.worker")
    parser.add_argument("--pool", required=True, help="whose runs it starts")
    parser.add_argument("--name", required=True)
    parser.add_argument("--limit", type=int, required=True, help="runs at a time")
    given = parser.parse_args(argv)
    worker = EnduringWorker(
        given.pool,
        name=given.name,
        limit=given.limit,
        heartbeat_interval_seconds=int(get_current_settings().worker.heartbeat_seconds),
    )
    try:
        asyncio.run(_until_stopped(worker))
    except (asyncio.CancelledError, KeyboardInterrupt):
        say(one_line(f"Worker {given.name} stopped."))
    return 0


async def _until_stopped(worker: EnduringWorker) -> None:
    """Work until a signal asks for the end; a second one is the end.

    The event loop takes signals between callbacks. Prefect's handlers raise ``KeyboardInterrupt`` in whatever runs, of which
    some catches everything: then the worker works on, and nothing but SIGKILL ends it.
    """
    received: list[int] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        if len(received) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        say(f"Received {number.name}. The worker stops when its runs have ended.")
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    await worker.start(printer=say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
