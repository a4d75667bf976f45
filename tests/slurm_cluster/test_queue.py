"""A job that waits: its orchestrator killed meanwhile, held and released, bound to what has not begun or never will."""

import shutil
import threading

import pytest

from dpo_core.contract.errors import StepCrashed, StoreError
from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.cluster_job import ClusterJob
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context, Stopped
from tasks.launch.launcher import Ended
from tasks.launch.own_folder import own_folder
from tasks.launch.slurm.config import SlurmConfig
from tasks.launch.slurm.launcher import SlurmLauncher
from tests.slurm_cluster.small_step import SmallStep
from tests.slurm_cluster.test_faults import meanwhile
from tests.slurm_cluster.test_interference import AS_INTERPRETER, lines_of, orchestrate
from tests.slurm_cluster.test_launcher import wait_for
from tests.slurm_cluster.trial import FORK
from tests.tasks.launch.test_run_job import Step
from tests.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cold_steps")]


@pytest.mark.parametrize("has_ended", [False, True], ids=["it still waits", "it has ended since"])
def test_an_orchestrator_killed_while_its_job_waits_is_followed_by_one_that_finds_it(
    cluster: PrivateCluster, tmp_path, has_ended: bool
):
    """One job, one result, each line once, whether the next comes while the job waits or when it has ended."""
    step = Step(tmp_path, 'print("line", flush=True); succeed()')
    program = tmp_path / "trainer"
    program.write_text(program.read_text().replace("job_path =", AS_INTERPRETER, 1))
    compute = ComputeConfig(launcher="slurm", stop_grace_seconds=1)
    launcher = SlurmLauncher(compute, SlurmConfig(poll_seconds=1), str(program))
    files = [tmp_path / "first.txt", tmp_path / "second.txt", tmp_path / "third.txt"]
    cluster.ask("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=test")
    try:
        for file in files[:2]:
            waiting = FORK.Process(target=orchestrate, args=(step, launcher, file))
            waiting.start()
            wait_for(lambda told=file: any("waits on partition" in line for line in lines_of(told)))
            waiting.kill()
            waiting.join()
        (job,) = cluster.jobs()
        assert job[1] == "PENDING"
    finally:
        cluster.ask("scontrol", "update", "nodename=n[1-2]", "state=resume")
    if has_ended:
        wait_for(lambda: cluster.jobs() == [])
    last = FORK.Process(target=orchestrate, args=(step, launcher, files[2]))
    last.start()
    last.join(timeout=PATIENCE_SECONDS / 2)
    assert last.exitcode == 0
    assert any(line.startswith("result ") for line in lines_of(files[2]))
    assert step.num_calls == 1
    log = (own_folder(step.folder) / "log.txt").read_text().splitlines()
    assert [line for line in log if line == "line"] == ["line"]
    assert cluster.jobs() == []


@pytest.mark.parametrize(("by", "reason"), [("uhold", "JobHeldUser"), ("hold", "JobHeldAdmin")])
def test_a_job_that_is_held_waits_says_so_and_goes_on_once_it_is_released(
    cluster: PrivateCluster, tmp_path, by: str, reason: str
):
    """Who holds it means to release it: the private cluster's user is its administrator, too."""
    step, shown = SmallStep(tmp_path, "print('up', flush=True)"), list[ClusterJob]()
    cluster.ask("scontrol", "update", "partition=train", "state=down")
    with meanwhile(step, shown.append) as end:
        try:
            wait_for(lambda: any(job.reason == "PartitionDown" for job in shown))
            job_id = shown[-1].id
            cluster.ask("scontrol", by, job_id)
        finally:
            cluster.ask("scontrol", "update", "partition=train", "state=up")
        wait_for(lambda: shown[-1].reason == reason)
        assert shown[-1].in_words == f"Job {job_id} of step train: PENDING, waits for {reason}"
        assert f"scontrol release {job_id}" in shown[-1].commands
        cluster.ask("scontrol", "release", job_id)
        assert end() == Ended(0)
    assert (step.log_lines, step.num_starts, step.prepared) == (["up"], 1, 1)
    assert shown[-1].commands[-1] != f"scontrol release {job_id}"


def test_a_folder_for_the_log_that_is_gone_when_a_job_begins_is_one_sentence(
    cluster: PrivateCluster, tmp_path
):
    step, shown = SmallStep(tmp_path, ""), list[ClusterJob]()
    cluster.ask("scontrol", "update", "partition=train", "state=down")
    with meanwhile(step, shown.append) as end:
        try:
            wait_for(lambda: any(job.reason == "PartitionDown" for job in shown))
            shutil.rmtree(step.record)
        finally:
            cluster.ask("scontrol", "update", "partition=train", "state=up")
        with pytest.raises(
            StoreError, match="No node could begin step train: the store, where its log goes,"
        ):
            end()
    assert step.num_starts == 0


def test_a_job_that_no_node_can_launch_is_submitted_once_more_and_is_then_a_crash(
    tmp_path_factory, tmp_path, monkeypatch
):
    """A prolog fails: Slurm drains the node, and holds the job for somebody to look. The second one meets another node."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "prolog").write_text("#!/bin/sh\nexit 1\n")
    (site / "prolog").chmod(0o755)
    (site / "slurm.conf").write_text(f"Prolog={site}/prolog\n")
    made = PrivateCluster(tmp_path_factory.mktemp("slurm"), site=site)
    made.up()
    monkeypatch.setenv("SLURM_CONF", str(made.conf))
    step, shown = SmallStep(tmp_path, ""), list[ClusterJob]()
    try:
        with pytest.raises(StepCrashed, match=r"could not be launched .* held.*\n?.*`sinfo -R`") as crashed:
            step.run(Context(on_cluster_job=shown.append))
        assert crashed.value.retryable
        wait_for(lambda: made.jobs() == [])
        drained = made.ask("sinfo", "-h", "-N", "-p", "train", "-o", "%t").split()
    finally:
        made.down()
    assert (step.prepared, step.num_starts) == (2, 0)
    assert len({job.id for job in shown}) == 2
    assert all(state.startswith("drain") for state in drained)


def test_a_reservation_that_has_not_begun_is_waited_for_and_can_be_left(cluster: PrivateCluster, tmp_path):
    about = ("reservationname=later", "starttime=now+1hour", "duration=60", "nodes=ALL", "users=root")
    cluster.ask("scontrol", "create", "reservation", *about)
    step, stop = SmallStep(tmp_path, "", settings={"flags": ["--reservation=later"]}), threading.Event()
    reasons = set()

    def seen(job: ClusterJob) -> None:
        reasons.add(job.reason)
        if "Reservation" in reasons:
            stop.set()

    try:
        with pytest.raises(Stopped):
            step.run(Context(stop=stop, on_cluster_job=seen))
    finally:
        cluster.ask("scontrol", "delete", "reservationname=later")
    assert (cluster.jobs(), step.num_starts) == ([], 0)
