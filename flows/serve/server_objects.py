"""What a server must hold beside the deployments of prefect.yaml: work pool, limits, automations. All idempotent."""

from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists

from flows.serve.settings import HEARTBEAT_SECONDS, POOL, ServeSettings
from tasks.launch.compute import accelerator_name, this_machine

DEAD_RUNS = "watch: dead runs"  # failures of what begins with "watch:" start no red run (prefect.yaml)
LONG_FLOWS = ("dpo-stage", "dpo-sweep", "rlvr-intake", "trl-*")
SECONDS_WITHOUT_HEARTBEAT = 3 * HEARTBEAT_SECONDS
TRAINING_QUEUE = "training"
ENDED = ("Completed", "Failed", "Cancelled", "Crashed")


def make_pool(client: SyncPrefectClient, settings: ServeSettings) -> None:
    """Make the work pool, with its limit. It counts waiting runs, too, so it is larger than the number of training
    slots.
    """
    try:
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", concurrency_limit=settings.max_runs)
        )
    except ObjectAlreadyExists:
        client.request(
            "PATCH",
            "/work_pools/{name}",
            path_params={"name": POOL},
            json={"concurrency_limit": settings.max_runs},
        )


def make_training_queue(client: SyncPrefectClient, slots: int) -> None:
    """Make the queue of all deployments that train: as many of their runs are at work as there are slots.

    A limit of a deployment spans no other. A global limit set on deployments would: but bringing a deployment to the
    server again deletes it, and the runs that hold a slot then end as crashed (seen with Prefect 3.8.8).
    """
    queues = {queue.name for queue in client.read_work_queues(work_pool_name=POOL)}
    if TRAINING_QUEUE in queues:
        client.request(
            "PATCH",
            "/work_pools/{work_pool_name}/queues/{name}",
            path_params={"work_pool_name": POOL, "name": TRAINING_QUEUE},
            json={"concurrency_limit": slots},
        )
    else:
        client.create_work_queue(TRAINING_QUEUE, concurrency_limit=slots, work_pool_name=POOL)


def dead_runs(seconds: float = SECONDS_WITHOUT_HEARTBEAT) -> AutomationCore:
    """Return an automation: a run whose heartbeats stay away, without having ended, is Crashed: its process was killed,
    or its machine.

    A heartbeat may reach the server after the end of its run, as it travels another way; setting the state then fails, as
    it should, and tells nothing. After a suspension it succeeds; `resume-crashed` then gives the run its state back. A
    paused run has a process that sends heartbeats, so a pause is no end.
    """
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={
            "prefect.flow-run.heartbeat",
            *(f"prefect.flow-run.{state}" for state in ENDED),
            "prefect.flow-run.Suspended",
            "prefect.flow-run.AwaitingRetry",
        },
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": list(LONG_FLOWS)},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )
    why = f"No heartbeat for {seconds} s: its process was killed, or its machine is gone."
    return AutomationCore(
        name=DEAD_RUNS,
        enabled=True,
        trigger=trigger,
        description=why,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=why)],
    )


def make_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create it, or bring the one of this name up to date.

    One that is up to date is left alone: an update would forget which runs' heartbeats it waits for.
    """
    known = client.find_automation(automation.name)
    if known is None:
        client.create_automation(automation)
    elif _content(known) != _content(automation):
        client.update_automation(known.id, automation)


def _content(automation: AutomationCore) -> dict:
    """What it does, without its id."""
    return automation.model_dump(include=set(AutomationCore.model_fields))


def prepare_pool(settings: ServeSettings) -> None:
    """Make what deployments need to be there before them."""
    with get_client(sync_client=True) as client:
        make_pool(client, settings)
        make_training_queue(client, settings.training_slots)


def prepare_limits_and_automations(settings: ServeSettings) -> str:
    """Make what needs the deployments. -> what the server now holds, in words"""
    accelerator = accelerator_name(this_machine())
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(
            accelerator, settings.training_slots
        )  # of a sweep's members
        make_automation(client, dead_runs())
        names = sorted(f"{name}" for name in deployment_names(client))
        automations = len(client.read_automations())
    return (
        f"{len(names)} deployments ({', '.join(names)}), {automations} automations, {settings.training_slots} training "
        "at once"
    )


def deployment_names(client: SyncPrefectClient) -> list[str]:
    """Return flow/deployment of all that the server holds."""
    flows = {flow.id: flow.name for flow in client.read_flows(limit=200)}
    return [
        f"{flows.get(deployment.flow_id, '?')}/{deployment.name}"
        for deployment in client.read_deployments(limit=200)
    ]
