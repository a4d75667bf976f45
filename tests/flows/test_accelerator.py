"""Which limit the members of a sweep wait for."""

from flows.accelerator import limit_of_members
from tasks.launch.compute import accelerator_name, this_machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import kind_of


def test_what_waits_in_a_clusters_queue_takes_no_slot_of_this_machine():
    here, cluster = (kind_of(ComputeConfig(launcher=name)) for name in ("process", "slurm"))
    assert limit_of_members(None, here) == accelerator_name(this_machine())
    assert limit_of_members(None, cluster) is None
    assert limit_of_members("ours", here) == limit_of_members("ours", cluster) == "ours"
