"""Ranks in containers of the nodes' docker engine: what they may, how they end, and that nothing of them is left."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import docker
import pytest

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.rank_container import KIND, NAME, SECONDS, START
from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.compute import Machine
from tasks.launch.context import Context, RunName, Stopped
from tasks.launch.docker.config import DockerConfig
from tasks.launch.docker.container import FOLDER
from tasks.launch.launcher import Ended
from tasks.launch.slurm.container import Wanted, step_container
from tests.slurm_cluster.small_step import SmallStep
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cold_steps")]
SECRET = "hf_not-for-others"


def step_in(image: str, root: Path, body: str, num_ranks: int = 1) -> SmallStep:
    compute = {"machines": num_ranks, "num_processes": num_ranks}
    return SmallStep(root, body, num_ranks, {"container": "docker", "image": image}, compute)


def containers_of(engine: docker.DockerClient, step: SmallStep) -> list[str]:
    """Names of the step's containers, running or not."""
    return [
        one.name
        for one in engine.containers.list(
            all=True, ignore_removed=True, filters={"label": f"{FOLDER}={step.folder}"}
        )
    ]


def test_a_rank_may_what_its_description_says_and_a_killed_one_is_named(
    cluster: PrivateCluster, shared_engine: docker.DockerClient, image: str, tmp_path, monkeypatch
):
    """Not root, no capability, a root that is read-only, its own folder alone; no token of the node's or of ours."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    body = """
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        def may_write(path):
            try:
                return bool(open(path, "w"))
            except OSError:
                return False
        print("user", os.getuid() != 0, "rights", int(status["CapEff"], 16), int(status["NoNewPrivs"]), flush=True)
        print("writes", may_write("/x"), may_write("/usr/x"), may_write("own"), flush=True)
        print("sees", os.path.exists(RECORD), os.path.exists("/root/.bashrc"), os.getcwd() == FOLDER, flush=True)
        told = [name for name in os.environ if name.startswith(("SLURM", "HF_T"))]
        print("told", os.environ["WORLD_SIZE"], os.environ["GIVEN"], told, flush=True)
        time.sleep(0.5 if rank else 600)
        os.kill(os.getpid(), 9)
    """
    step = step_in(image, tmp_path, "", num_ranks=2)
    step.body = body.replace("RECORD", repr(str(step.record))).replace("FOLDER", repr(str(step.folder)))
    ended = step.run(env={"GIVEN": "by recipe"})
    said = [line for line in step.log_lines if line.startswith("[rank 1] ")]
    assert [line.removeprefix("[rank 1] ") for line in said[:4]] == [
        "user True rights 0 1",
        "writes False False True",
        "sees False False True",
        "told 2 by recipe []",
    ], step.log_lines
    assert (ended.exit_code, ended.cause) == (-9, "rank 1 on n2 was killed by signal 9 (SIGKILL).")
    assert containers_of(shared_engine, step) == []


def test_shares_in_containers_find_a_cache_in_a_new_store(cluster: PrivateCluster, image: str, tmp_path):
    """It is theirs alone to write to, and made before they begin."""
    body = """
        share = sys.argv[-1].partition("/")[0] if "--share" in sys.argv else "pass"
        Path("cache", share).touch()
    """
    settings = {"container": "docker", "image": image, "reference_array": 2, "cpus_per_node": 2}
    step = SmallStep(tmp_path, body, 1, settings, {"num_processes": 2}, step="reference")
    assert step.run() == Ended(0), step.log_lines
    assert sorted(place.name for place in (step.folder / "cache").iterdir()) == ["0", "1", "pass"]


def test_a_cancelled_step_keeps_its_checkpoint_and_leaves_no_container(
    cluster: PrivateCluster, shared_engine: docker.DockerClient, image: str, tmp_path
):
    """Asked once, though Slurm signals docker's client beside the task, and each passes it on."""
    body = """
        def checkpoint(*_):
            Path("asked").open("a").write("once ")
            time.sleep(1)
            Path("checkpoint").touch()
            sys.exit(20)
        signal.signal(signal.SIGTERM, checkpoint)
        print("up", flush=True)
        time.sleep(600)
    """
    step, stop = step_in(image, tmp_path, body), threading.Event()

    def cancel() -> None:
        try:
            wait_until(lambda: step.log_lines, "the first line")
            seen.append(containers_of(shared_engine, step))
        finally:
            stop.set()

    seen: list[list[str]] = []
    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    with pytest.raises(Stopped):
        step.run(Context(stop=stop))
    thread.join()
    assert [len(names) for names in seen] == [1]
    assert (step.folder / "checkpoint").exists()
    assert (step.folder / "asked").read_text() == "once "
    assert containers_of(shared_engine, step) == []
    assert cluster.jobs() == []


def test_a_container_that_cannot_be_made_is_one_sentence(cluster: PrivateCluster, image: str, tmp_path):
    with pytest.raises(
        ConfigError, match=r"The container of step train cannot be made: .*sha256:0000.*slurm\.image"
    ):
        step_in("sha256:" + "0" * 64, tmp_path, "").run()


def test_a_container_ends_with_the_task_that_started_it(
    shared_engine: docker.DockerClient, image: str, tmp_path
):
    """kill -9 of the task: nobody is left to stop its container, and nobody has to."""
    step = step_in(image, tmp_path, "print('up', flush=True); time.sleep(600)")
    launcher = step.launcher
    wanted = Wanted(launcher.slurm, DockerConfig(), launcher.compute)
    container = step_container(step.command(), wanted, Machine(2, 0), RunName(), {})
    assert container is not None
    start = tmp_path / "key.0"
    (start / "ranks").mkdir(parents=True)
    (tmp_path / "attempt").write_text("key.0")
    step.folder.chmod(0o777)
    told = {
        KIND: "docker",
        NAME: container.spec.name,
        SECONDS: "60",
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "1",
    }
    task = subprocess.Popen(
        [sys.executable, "-P", "-m", "dpo_core.in_slurm", str(start), "", *container.command()],
        env=os.environ | told,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert task.stdout is not None
    assert task.stdout.readline() == "up\n"
    (name,) = containers_of(shared_engine, step)
    labels = shared_engine.containers.get(name).labels
    assert name == f"{container.spec.name}-{labels[START]}"
    task.send_signal(signal.SIGKILL)
    wait_until(lambda: not containers_of(shared_engine, step), "the end of the container")
    task.communicate(timeout=60)
