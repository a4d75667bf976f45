"""What people switched on or off in the UI stays so when the deployments are brought to the server again.

Prefect makes a deployment's schedules anew from prefect.yaml, switched as they stand there, and ends its pause.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client

Switches = dict[
    tuple[UUID, str | None], bool
]  # (deployment, its schedule's slug; None: the whole of it) -> is it on


@contextmanager
def switches_kept() -> Iterator[None]:
    """Leave deployments that are there on or off as they were, whatever happens to them inside."""
    with get_client(sync_client=True) as client:
        before = switches(client)
        yield
        for (deployment, slug), on in switches(client).items():
            was = before.get((deployment, slug), on)
            if was != on:
                _switch(client, deployment, slug, was)


def switches(client: SyncPrefectClient) -> Switches:
    """Return every switch of the server's deployments."""
    deployments = client.read_deployments(limit=200)
    schedules = {
        (deployment.id, schedule.slug): schedule.active
        for deployment in deployments
        for schedule in deployment.schedules
        if schedule.slug
    }
    return schedules | {(deployment.id, None): not deployment.paused for deployment in deployments}


def _switch(client: SyncPrefectClient, deployment: UUID, slug: str | None, on: bool) -> None:
    if slug is None:
        client.set_deployment_paused_state(deployment, not on)
        return
    (schedule,) = (
        schedule for schedule in client.read_deployment(deployment).schedules if schedule.slug == slug
    )
    client.update_deployment_schedule(deployment, schedule.id, active=on)
