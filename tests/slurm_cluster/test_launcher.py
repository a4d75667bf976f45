"""Steps as jobs of a real cluster: what they get, how they end, and that there is one of each."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from dpo_core.contract.errors import Cancelled, ConfigError, StoreError, TimedOut
from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.command import typical_command
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context, Stopped
from tasks.launch.launcher import Ended, Node
from tasks.launch.launchers import LauncherSections
from tasks.launch.own_folder import claim
from tasks.launch.slurm.client import NotAuthenticated
from tasks.launch.slurm.config import SlurmConfig
from tasks.launch.slurm.launcher import SlurmLauncher
from tasks.launch.slurm.reap import reap_jobs
from tests.slurm_cluster.conftest import SecondsOf
from tests.slurm_cluster.small_step import SmallStep
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cold_steps")]
SECRET = "hf_not-for-others"
wait_for = wait_until


def orchestrator(step: SmallStep) -> subprocess.Popen:
    """The same run as a process of its own."""
    told = {name: value for name, value in asdict(step).items() if name not in ("root", "prepared")}
    argv = [sys.executable, "-m", "tests.slurm_cluster.small_step", str(step.root), json.dumps(told)]
    return subprocess.Popen(argv, start_new_session=True)


def cancel(step: SmallStep, when: Callable[[], object], took: AbstractContextManager[None]) -> None:
    """Run the step, and cancel it ``when`` that holds. ``took`` is entered from then to its end."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(step.run, Context(stop=stop))
        try:
            wait_for(when)
            with took:
                stop.set()
                with pytest.raises(Stopped):
                    running.result(PATIENCE_SECONDS)
        finally:
            stop.set()


def test_every_rank_is_a_task_and_gets_what_it_needs_and_no_more(
    cluster: PrivateCluster, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_HUB_TEST", "passed-on")
    monkeypatch.setenv("MY_PASSWORD", SECRET)
    body = """
        names = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "HF_HUB_TEST", "SLURM_EXPORT_ENV", "GIVEN", "MADE")
        print(*(os.environ.get(name) for name in names), SECRET_OF(), os.getcwd(), flush=True)
    """.replace("SECRET_OF()", "open(os.environ['HF_TOKEN_PATH']).read()[:3], os.environ.get('MY_PASSWORD')")
    step = SmallStep(
        tmp_path, body, 2, {"setup": ["export MADE=by-setup"]}, {"machines": 2, "num_processes": 2}
    )
    assert step.run(secrets=("HF_TOKEN",), env={"GIVEN": "by recipe"}) == Ended(0)
    said = f"2 0 127.0.0.1 passed-on None by recipe by-setup hf_ None {step.folder}"
    assert sorted(step.log_lines) == sorted([said, f"[rank 1] {said}"])
    assert cluster.jobs() == []
    job_id = next(step.record.glob("*.0/started")).read_text().split()[1]
    assert SECRET not in cluster.ask("scontrol", "write", "batch_script", job_id, "-")
    assert SECRET not in cluster.ask("scontrol", "show", "job", job_id)
    assert not list(step.record.glob("secret-*"))


def test_ends_are_told_apart(cluster: PrivateCluster, tmp_path):
    of_its_own = SmallStep(tmp_path / "a", "print('last words'); sys.exit(11)")
    assert of_its_own.run() == Ended(11)
    assert of_its_own.log_lines[0] == "last words"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_with_its_node_and_its_signal(
    cluster: PrivateCluster, tmp_path, rank: int, number: signal.Signals
):
    """The first one, too, beside which its node's other programs end; none of them is taken for the cause."""
    body = f"time.sleep(0.1 if rank == {rank} else 600); os.kill(os.getpid(), {int(number)})"
    killed = SmallStep(tmp_path, body, 2, {}, {"machines": 2, "num_processes": 2}).run()
    cause = f"rank {rank} on n{rank + 1} was killed by signal {int(number)} ({number.name})."
    assert (killed.exit_code, killed.cause) == (-number, cause)


def test_what_cannot_begin_is_one_sentence(cluster: PrivateCluster, tmp_path):
    with pytest.raises(ConfigError, match=r"The set-up line 'false' \(slurm.setup\) failed on "):
        SmallStep(tmp_path / "a", "", settings={"setup": ["false"]}).run()
    with pytest.raises(ConfigError, match="There is no interpreter /no/python"):
        SmallStep(tmp_path / "b", "").run(argv=("/no/python",))
    gone = SmallStep(tmp_path / "c", "")
    with pytest.raises(StoreError, match="The store is not to be seen: there is no /no/job"):
        gone.run(program=("-c", "", "/no/job.json"))
    with pytest.raises(ConfigError, match=r"Slurm refuses \(sbatch\): .*invalid partition specified: nosuch"):
        SmallStep(
            tmp_path / "d", "", settings={"partition": "nosuch", "cpus_per_node": 1, "memory_gib": 1}
        ).run()
    with pytest.raises(ConfigError, match=r"can never start: Partition(TimeLimit|Config)"):
        SmallStep(tmp_path / "e", "", settings={"partition": "short", "time_limit_minutes": 60}).run()
    assert cluster.jobs() == []


def test_a_killed_orchestrator_is_followed_by_one_that_attaches(
    cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """One job, every line once, whether it was killed while the job ran or before it was read to the end."""
    body = """
        for number in range(60):
            while number == 30 and not Path("go").exists():
                time.sleep(0.1)
            print("line", number, flush=True)
            time.sleep(0.1)
    """
    step = SmallStep(tmp_path, body)
    for reached in (2, 20):
        first = orchestrator(step)
        wait_for(lambda at=reached: len(step.log_lines) >= at)
        first.send_signal(signal.SIGKILL)
        first.wait()
    (step.folder / "go").touch()
    with seconds_of("the rest of a job, 3 s, by the third of its orchestrators"):
        assert step.run() == Ended(0)
    assert (step.prepared, step.num_starts) == (0, 1)
    assert step.log_lines == [f"line {number}" for number in range(60)]


def test_who_is_not_known_any_more_leaves_the_job_to_the_next_start(
    cluster: PrivateCluster, tmp_path, monkeypatch
):
    """As where munged is gone: what Slurm's own programs say then."""
    conf, known = tmp_path / "slurm.conf", cluster.conf.read_text()
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setattr(NotAuthenticated, "longest_seconds", 0.0)
    without = re.sub(r"^(Auth|Cred)(Type|Info)=.*$", "", known, flags=re.MULTILINE)

    def munged_goes(line: str) -> None:
        if line == "up":
            conf.write_text(f"{without}\nAuthType=auth/munge\nAuthInfo=socket={tmp_path}/nobody\n")

    body = """
        print("up", flush=True)
        while not Path("go").exists():
            time.sleep(0.1)
    """
    step, listener = SmallStep(tmp_path, body), SimpleNamespace(line=munged_goes, progress=print, end=print)
    conf.write_text(known)
    with pytest.raises(
        NotAuthenticated, match=r"cannot be told who asks .* is munged running on this machine"
    ):
        step.run(Context(lines=listener))
    conf.write_text(known)
    (step.folder / "go").touch()
    assert step.run() == Ended(0)
    assert (step.prepared, step.num_starts) == (1, 1)
    assert [line for line in step.log_lines if line == "up"] == ["up"]


def test_a_cancelled_run_keeps_its_checkpoint_and_leaves_nothing(
    cluster: PrivateCluster, tmp_path, seconds_of: SecondsOf
):
    """A checkpoint that takes longer than the site's KillWait of 5 s."""
    body = """
        def checkpoint():
            time.sleep(6.5)
            Path(f"checkpoint-{rank}").touch()
            sys.exit(20)
        on_stop(checkpoint)
        print("up", flush=True)
        time.sleep(600)
    """
    compute = {"machines": 2, "num_processes": 2, "stop_grace_seconds": 300}
    step = SmallStep(tmp_path, body, 2, {}, compute)
    took = seconds_of("cancelled, with a checkpoint that takes 6.5 s, until it is gone")
    cancel(step, lambda: len(step.log_lines) == 2, took)
    assert (step.folder / "checkpoint-0").exists()
    assert (step.folder / "checkpoint-1").exists()
    assert cluster.jobs() == []


def test_neighbours_are_of_one_node_where_a_site_deals_ranks_out_in_turn(cluster: PrivateCluster, tmp_path):
    body = 'print(rank, os.environ["LOCAL_RANK"], os.environ["SLURMD_NODENAME"], flush=True)'
    site = {"setup": ("export SLURM_DISTRIBUTION=cyclic",), "cpus_per_node": 2}
    step = SmallStep(tmp_path, body, 4, site, {"machines": 2, "num_processes": 4})
    assert step.run(node=Node(0, 2)) == Ended(0)
    said = sorted(line.rpartition("] ")[2] for line in step.log_lines)
    assert said == ["0 0 n1", "1 1 n1", "2 0 n2", "3 1 n2"]


def test_a_person_who_cancels_the_job_is_not_overruled(cluster: PrivateCluster, tmp_path):
    step = SmallStep(tmp_path, "print('up', flush=True); time.sleep(600)")
    ids = lambda: cluster.ask("squeue", "-h", "-o", "%i").split()  # noqa: E731
    threading.Thread(
        target=lambda: (wait_for(lambda: step.log_lines), cluster.ask("scancel", *ids())), daemon=True
    ).start()
    with pytest.raises(Cancelled, match="was cancelled by someone"):
        step.run()


def test_time_in_the_queue_is_not_the_steps(cluster: PrivateCluster, tmp_path):
    """Both nodes are taken for longer than the step may run; only once it runs, its time is up."""
    cluster.ask("sbatch", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3")
    step = SmallStep(tmp_path, "time.sleep(600)", compute={"step_timeout_seconds": 1})
    with pytest.raises(TimedOut, match="longer than 1 s"):
        step.run()
    assert list(step.record.glob("*.0/started"))
    assert cluster.jobs() == []


def test_a_job_without_a_run_is_reaped_and_one_with_a_run_is_not(cluster: PrivateCluster, tmp_path):
    """Others' jobs are nobody's business; the rest of the log is kept."""
    cluster.ask("sbatch", "--job-name=another", "--output=/dev/null", "--wrap", "sleep 600")
    body = """
        def stop():
            print("stopped", flush=True)
            sys.exit(20)
        on_stop(stop)
        print("up", flush=True)
        time.sleep(600)
    """
    step = SmallStep(tmp_path, body)
    with claim(step.folder):
        running = orchestrator(step)
        wait_for(lambda: step.log_lines)
        (found,) = reap_jobs(dry_run=False, state_of=lambda flow_run: "unknown")
        assert (found.reason, found.done) == ("", "left alone: a live run owns it")
    running.kill()
    running.wait()
    (found,) = reap_jobs(dry_run=False, state_of=lambda flow_run: "live")
    assert found.reason == ""
    (found,) = reap_jobs(dry_run=True, state_of=lambda flow_run: "over")
    assert found.done == "would be cancelled"
    assert reap_jobs(dry_run=False, state_of=lambda flow_run: "over", only_of={"another"}) == []
    (found,) = reap_jobs(dry_run=False, state_of=lambda flow_run: "over")
    assert (found.step, found.done) == ("train", "cancelled")
    assert [line for line in step.log_lines if line in ("up", "stopped")] == ["up", "stopped"]
    assert [name for name, _ in cluster.jobs()] == ["another"]
    cluster.ask("scancel", "--name=another")


def test_a_plan_asks_the_cluster_and_submits_nothing(cluster: PrivateCluster, tmp_path, monkeypatch):
    compute = ComputeConfig(launcher="slurm", machines=2, num_processes=2)

    def preview(machines: ComputeConfig = compute, **slurm: object) -> str:
        sections = LauncherSections(slurm=SlurmConfig(**slurm))
        machine = SlurmLauncher.target(machines, sections, "train")
        return SlurmLauncher.preview(
            machines, sections, typical_command("train", machines, machine, tmp_path)
        )

    assert re.match(
        r"# train: Job \d+ to start at .* on nodes n\[1-2\] in partition train\.\nsbatch --job", preview()
    )
    assert "# train: REFUSED. Slurm refuses (sbatch): " in preview(partition="nosuch", cpus_per_node=1)
    monkeypatch.setenv("PATH", "/nowhere")
    assert preview().startswith("# train: not checked: There is no sinfo on this machine")
    monkeypatch.undo()
    assert cluster.jobs() == []
