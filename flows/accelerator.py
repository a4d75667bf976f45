"""The accelerators of a machine as a Prefect global concurrency limit: whoever trains takes a slot of it.

A limit that does not exist limits nothing in Prefect, without a word; here it must exist.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from dpo_core.contract.errors import ConfigError
from flows.serve.local_prefect import server_outlives_the_run
from tasks.launch.compute import accelerator_name, this_machine
from tasks.launch.context import Context
from tasks.launch.launcher import Launcher

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 2
LEASE_SECONDS = 60  # a slot whose holder was killed is free again after this; Prefect has no less


def num_slots(name: str) -> int:
    """Return how many may train at once. Raises ``ConfigError`` that says how to make a limit that is not there or lets
    none in.
    """
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            raise ConfigError(
                f"There is no global concurrency limit {name!r} on the Prefect server, and without one "
                "nothing keeps runs from sharing an accelerator. Create it, with a slot for each run that may "
                f"train at once:  prefect gcl create {name} --limit 1"
            ) from None
    if limit.limit < 1:
        raise ConfigError(
            f"The global concurrency limit {name!r} has no slots. Give it some:  prefect gcl update {name} "
            "--limit 1"
        )
    return limit.limit


def limit_of_members(accelerator: str | None, launcher: type[Launcher]) -> str | None:
    """Return the limit whose slots a sweep's members take: the one that is named, else this machine's accelerator; None
    where a cluster's queue does that."""
    if accelerator is None and launcher.queues:
        return None
    return accelerator or accelerator_name(this_machine())


def make_own_limit(name: str) -> None:
    """Make one slot, free, on a temporary server, which nobody else uses: what an earlier, killed run held there is
    free.
    """
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=0))


@contextmanager
def _held(name: str) -> Iterator[None]:
    """Hold a slot, or raise ``TimeoutError`` where none is free. Where the server is away at the end, the slot is free by
    itself.

    One question, whose answer is waited for: who gives up in the middle of it may have been granted a slot that nobody
    holds, until its lease is over, and on a temporary server for ever.
    """
    has_begun = is_over = False
    try:
        with concurrency(
            name,
            strict=True,
            max_retries=0,
            lease_duration=LEASE_SECONDS,
            raise_on_lease_renewal_failure=False,
        ):
            has_begun = True
            yield
            is_over = True
    except ConcurrencySlotAcquisitionError as error:
        if has_begun or not _is_taken(error):
            raise
        raise TimeoutError(f"all slots of {name} are taken") from error
    except httpx.TransportError as error:  # a client that was never connected does not wait for the server
        if not is_over:
            raise
        log.warning(
            "The slot of the limit %s could not be given back (%s). It is free again after %d s.",
            name,
            error,
            LEASE_SECONDS,
        )


def _is_taken(error: ConcurrencySlotAcquisitionError) -> bool:
    cause = error.__cause__
    return isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code == httpx.codes.LOCKED


@contextmanager
def slot(name: str | None, context: Context) -> Iterator[None]:
    """Hold a slot, after waiting for it; none where there is no limit. A server that goes away for a while does not end who
    holds one."""
    with ExitStack() as stack:
        waits = False
        while name is not None:
            context.raise_if_stopped()
            with suppress(TimeoutError):
                stack.enter_context(_held(name))
                break
            if not waits:
                get_run_logger().info("Waiting for a slot of the limit %s: others train.", name)
            waits = True
            context.sleep(SECONDS_BETWEEN_LOOKS)
        yield


@contextmanager
def slot_of(launcher: Launcher, context: Context) -> Iterator[None]:
    """Hold a slot of this machine's accelerator if the server limits it and the launcher's steps take it: what waits in a
    cluster's queue occupies nothing here. A temporary server is nobody else's, so what its database holds of a limit,
    from a sweep that was killed, is not waited for."""
    name = accelerator_name(this_machine())
    if launcher.queues or not server_outlives_the_run() or not _is_limited(name):
        yield
        return
    with slot(name, context):
        yield


def _is_limited(name: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(name).active
        except ObjectNotFound:
            return False
