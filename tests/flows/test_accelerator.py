"""Which limit the members of a sweep wait for; and its slots: each is somebody's or free, however slow the server is."""

import threading

import pytest
from prefect.client.orchestration import get_client
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.accelerator import limit_of_members, slot, slot_of
from tasks.launch.compute import accelerator_name, this_machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context, Stopped
from tasks.launch.launcher import kind_of, launcher_for
from tasks.launch.launchers import LauncherSections
from tests.faulty_server import Faults

LIMIT = "slots-of-a-slow-server"


def test_what_waits_in_a_clusters_queue_takes_no_slot_of_this_machine():
    here, cluster = (kind_of(ComputeConfig(launcher=name)) for name in ("process", "slurm"))
    assert limit_of_members(None, here) == accelerator_name(this_machine())
    assert limit_of_members(None, cluster) is None
    assert limit_of_members("ours", here) == limit_of_members("ours", cluster) == "ours"


class WaitedFor(threading.Event):
    """A run's stop, which comes as soon as somebody waits."""

    def wait(self, timeout: float | None = None) -> bool:
        """Stop the run in the place of the wait."""
        self.set()
        return super().wait(timeout)


@pytest.mark.integration
@pytest.mark.usefixtures("prefect_server")
def test_a_stage_whose_steps_a_cluster_queues_waits_for_no_slot_of_this_machine():
    name, context = accelerator_name(this_machine()), Context(stop=WaitedFor())
    with get_client(sync_client=True) as client, disable_run_logger():
        client.upsert_global_concurrency_limit_by_name(name, 1)
        try:
            with slot(name, Context()):
                with slot_of(launcher_for(ComputeConfig(launcher="slurm"), LauncherSections()), context):
                    assert client.read_global_concurrency_limit_by_name(name).active_slots == 1
                context.raise_if_stopped()
                here = launcher_for(ComputeConfig(), LauncherSections())
                with pytest.raises(Stopped), slot_of(here, context):
                    raise AssertionError("two train on one accelerator")
        finally:
            client.delete_global_concurrency_limit_by_name(name)


@pytest.mark.integration
@pytest.mark.usefixtures("prefect_server")
def test_a_slot_that_is_granted_late_is_taken_all_the_same():
    """The server of a busy machine has granted it when its answer is not here yet; who gives up then leaves a slot that
    nobody holds, and a temporary server never takes it back."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LIMIT, 1)
        proxy = Faults(str(client.api_url).removesuffix("/api/").removesuffix("/api"))
        proxy.slow = {"increment-with-lease": [7.0]}
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{proxy.server_port}/api"
            with temporary_settings({PREFECT_API_URL: url}), disable_run_logger(), slot(LIMIT, Context()):
                assert proxy.seen == ["increment-with-lease"]
                assert client.read_global_concurrency_limit_by_name(LIMIT).active_slots == 1
            assert client.read_global_concurrency_limit_by_name(LIMIT).active_slots == 0
        finally:
            proxy.shutdown()
            client.delete_global_concurrency_limit_by_name(LIMIT)
