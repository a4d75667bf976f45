"""What sinfo prints of nodes, read; recorded of 22.05.8 and 24.11.5, which print the same."""

import threading

import pytest

from tasks.launch.command import typical_command
from tasks.launch.compute import Machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context, Stopped
from tasks.launch.slurm.client import SlurmAway
from tasks.launch.slurm.nodes import NodeKind, parse_nodes
from tests.slurm_cluster.small_step import SmallStep
from tests.tasks.launch.slurm.recorded import NO_ANSWER, RecordedSlurm, after


def test_the_least_node_of_a_partition():
    kind = parse_nodes("gpu|96|2063000|n/a|infinite\ngpu|48+|1031000+|n/a|infinite\n")
    assert kind == NodeKind(48, 1031000 << 20)
    assert kind.machine(Machine(0, 8, 0), parts=2) == Machine(24, 8, 1031000 << 19)
    assert parse_nodes("") is None
    assert parse_nodes("gpu|96|1|n/a|infinite\n") == NodeKind(96, 0)  # the site says nothing of memory


def test_a_job_without_a_partition_gets_the_nodes_of_the_default_one():
    lines = "debug|2|1|n/a|30:00\ngpu*|96|1|n/a|1-00:00:00\n"
    assert parse_nodes(lines) == NodeKind(96, 0, 24 * 60)
    assert parse_nodes(lines.replace("*", "")) == NodeKind(2, 0, 30)  # a site's plugin may choose one


@pytest.mark.parametrize(
    ("usual", "longest", "minutes"),
    [
        ("n/a", "infinite", None),
        ("n/a", "1:00", 1),
        ("2:00", "1-12:00:00", 2),
        ("n/a", "1-12:00:00", 2160),
        ("n/a", "4:30:00", 270),
        ("infinite", "30:00", 30),
        ("n/a", "UNLIMITED", None),
    ],
)
def test_a_job_that_names_no_time_has_its_partitions(usual: str, longest: str, minutes: int | None):
    assert parse_nodes(f"gpu|96|1|{usual}|{longest}\n") == NodeKind(96, 0, minutes)


def test_the_nodes_cards_and_cores_count_where_this_machine_has_none(
    slurm: RecordedSlurm, step: SmallStep, tmp_path
):
    """A login node without cards makes no step of the model one for CPUs."""
    step.settings = {"gpus_per_node": "h100:8", "partition": "gpu", "partitions": {"mix": "cpu"}}
    gpu, cpu = 'echo "gpu|96|2063000|n/a|infinite"', 'echo "cpu|64|515000|n/a|infinite"'
    slurm.does("sinfo", f'case "$*" in *partition=gpu*) {gpu};; *partition=cpu*) {cpu};; esac')
    train, mix = (step.launcher.machine_for(name, Context()) for name in ("train", "mix"))
    assert (train, mix) == (Machine(96, 8, 2063000 << 20), Machine(64, 0, 515000 << 20))
    env = typical_command("train", ComputeConfig(launcher="slurm", num_processes=8), train, tmp_path).env
    assert (env["OMP_NUM_THREADS"], "ACCELERATE_USE_CPU" in env) == ("12", False)


def test_a_controller_that_is_away_as_a_step_begins_is_waited_for(
    slurm: RecordedSlurm, step: SmallStep, monkeypatch
):
    """Which cores and cards there are is asked before anything else; a retry of the run comes three times within minutes."""
    step.settings = {}
    monkeypatch.setattr(SlurmAway, "seconds_between_tries", 0.01)
    slurm.does("sinfo", after(2, "sinfo", 'echo "gpu*|96|1|n/a|infinite"', NO_ANSWER))
    assert step.launcher.machine_for("train", Context()) == Machine(96, 0, 0)
    slurm.does("sinfo", NO_ANSWER)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        step.launcher.machine_for("train", Context(stop=stop))
    step.patience_seconds = 0.0
    with pytest.raises(SlurmAway):
        step.launcher.machine_for("train", Context())
