"""A Slurm cluster of this machine alone, to try things on: real slurmctld and slurmds with ports and a folder of their own.

In a tenth of a second, with 20 MB. Every node is a slurmd of its own name; what runs "there" runs here.

PAIRLINE_SLURM_SITE names a folder with a site's own settings: of the lines of its ``slurm.conf`` each counts in place of the
one here, and its ``cgroup.conf`` is taken as it is. ``{folder}`` and ``{names}`` stand for the cluster's own.
"""

import contextlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

CONFIGURATION = """
ClusterName=private{controller_port}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout={node_seconds}
KillWait=5
MessageTimeout={message_seconds}
MinJobAge=300
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{site}
{nodes}
PartitionName=train Nodes={names} Default=YES
PartitionName=short Nodes={names} MaxTime=1
PartitionName=urgent Nodes={names} PriorityTier=10 PreemptMode=OFF
"""
NO_CGROUPS = (23, 11)  # from here on they have to be forgone by name where they cannot be written
SECONDS_TO_COME_UP = 120.0
GIVEN_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST_PORT, HIGHEST_PORT = 10_000, 32_000
SYSTEM_PROGRAMS = ("/usr/sbin", "/usr/local/sbin", "/sbin")  # where daemons lie, which users' PATH may lack


def find_program(name: str) -> str | None:
    """Return the path of a program of Slurm's, if it is installed."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_PROGRAMS)))


def slurm_version() -> tuple[int, ...]:
    """Return the version of the slurmctld that is installed, as ``slurm-wlm 24.11.5`` says it."""
    said = subprocess.run(
        (find_program("slurmctld") or "slurmctld", "-V"), capture_output=True, text=True, check=False
    ).stdout
    return tuple(int(number) for number in re.findall(r"\d+", said))


def _site() -> Path | None:
    return Path(named) if (named := os.environ.get("PAIRLINE_SLURM_SITE")) else None


@dataclass(frozen=True)
class PrivateCluster:
    """A cluster in ``folder``: ``num_nodes`` slurmds, each of which believes to have ``num_cores``.

    An answer that takes ``message_seconds`` is lost, a node that is silent for twice as long, too. 10 is Slurm's own.
    """

    folder: Path
    num_nodes: int = 2
    num_cores: int = 2
    message_seconds: int = 10
    site: Path | None = field(default_factory=_site)

    @property
    def conf(self) -> Path:
        """What SLURM_CONF names."""
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Of whoever talks to it."""
        return dict(os.environ) | {"SLURM_CONF": str(self.conf)}

    @property
    def nodes(self) -> list[str]:
        """Names of its nodes."""
        return [f"n{number}" for number in range(1, self.num_nodes + 1)]

    def up(self) -> None:
        """Write its configuration, start its daemons, and wait until the nodes are idle."""
        (self.folder / "state").mkdir(parents=True)
        (self.folder / "cgroup.conf").write_text(
            self._of_site("cgroup.conf", "CgroupPlugin=disabled\n" if slurm_version() >= NO_CGROUPS else "")
        )
        for name in self.nodes:
            (self.folder / f"spool-{name}").mkdir()
        controller, *ports = free_ports(self.num_nodes + 1)
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.num_cores}"
            for name, port in zip(self.nodes, ports, strict=True)
        )
        self.conf.write_text(
            CONFIGURATION.format(
                host=host,
                controller_port=controller,
                user=_user(),
                folder=self.folder,
                nodes=nodes,
                names=",".join(self.nodes),
                message_seconds=self.message_seconds,
                node_seconds=2 * self.message_seconds + 1,
                site=self._of_site("slurm.conf"),
            )
        )
        self.start_controller()
        for name in self.nodes:
            self.start_node(name)
        self.wait_for_nodes("idle")

    def start_controller(self) -> None:
        """Start slurmctld; it takes up what it knew."""
        self._start("slurmctld")

    def start_node(self, name: str) -> None:
        """Start a node's slurmd."""
        self._start("slurmd", "-N", name)

    def kill_controller(self) -> None:
        """Kill slurmctld with -9."""
        self._kill("slurmctld")

    def kill_node(self, name: str) -> None:
        """Kill a node's slurmd with -9. What it runs goes on."""
        self._kill(name)

    def signal_controller(self, number: int) -> None:
        """Send slurmctld a signal."""
        os.kill(int((self.folder / "slurmctld.pid").read_text()), number)

    def lose_state(self) -> None:
        """Kill slurmctld and have it start without all it knew: it counts the ids of jobs from 1 again."""
        self.kill_controller()
        shutil.rmtree(self.folder / "state")
        (self.folder / "state").mkdir()
        self.start_controller()
        until = time.monotonic() + SECONDS_TO_COME_UP
        while not self.ask("sinfo", "-h"):
            assert time.monotonic() < until, f"slurmctld does not answer:\n{self.logs()}"

    def save_jobs(self) -> None:
        """Have slurmctld write down what runs. It does so seconds after a job began, or with the next change; what it has
        not written when it is killed it has forgotten, and starts again."""
        begun, state = time.time(), self.folder / "state" / "job_state"
        for job_id in self.ask("squeue", "--noheader", "--states=RUNNING", "--format=%i").split():
            self.ask("scontrol", "update", f"jobid={job_id}", "nice=1")
        until = time.monotonic() + SECONDS_TO_COME_UP
        while not state.exists() or state.stat().st_mtime < begun:
            assert time.monotonic() < until, f"slurmctld has written nothing:\n{self.logs()}"
            time.sleep(0.05)

    def start_now(self) -> None:
        """End the two minutes for which Slurm holds what it requeues."""
        for job_id in self.ask("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i").split():
            self.ask("scontrol", "update", f"jobid={job_id}", "starttime=now")

    def wait_for_nodes(self, state: str) -> None:
        """Wait until all nodes are in this state."""
        until = time.monotonic() + SECONDS_TO_COME_UP
        while (seen := self.ask("sinfo", "-h", "-N", "-p", "train", "-o", "%t").split()) != [
            state
        ] * self.num_nodes:
            assert time.monotonic() < until, f"the cluster is {seen}:\n{self.logs()}"
            time.sleep(0.05)

    def ask(self, *command: str) -> str:
        """Return what a command of Slurm's says."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        ).stdout

    def jobs(self) -> list[tuple[str, str]]:
        """Return name and state of the jobs that have not ended."""
        lines = self.ask("squeue", "-h", "-o", "%j %T").splitlines()
        return [(name, state) for name, state in (line.split() for line in lines)]

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "\n".join(log.read_text()[-1000:] for log in self.folder.glob("*.log"))

    def down(self) -> None:
        """End jobs and daemons."""
        self.ask("scancel", f"--user={_user()}")
        until = time.monotonic() + 15
        while self.jobs() and time.monotonic() < until:
            time.sleep(0.1)
        for name in ("slurmctld", *self.nodes):
            self._kill(name)

    def _of_site(self, name: str, otherwise: str = "") -> str:
        file = self.site / name if self.site else None
        if file is None or not file.exists():
            return otherwise
        return file.read_text().replace("{folder}", str(self.folder)).replace("{names}", ",".join(self.nodes))

    def _start(self, program: str, *arguments: str) -> None:
        command = (find_program(program) or program, *arguments)
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}\n{self.logs()}"

    def _kill(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            pid = int((self.folder / f"{name}.pid").read_text())
            os.kill(pid, signal.SIGKILL)
            (self.folder / f"{name}.pid").unlink()
            while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
                time.sleep(0.01)


def _state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return "Z"


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def free_ports(number: int) -> list[int]:
    """Return ports that are free, and not of those that the kernel gives to whoever asks for any: one would be taken before
    its daemon has started, or while it is away."""
    with contextlib.suppress(OSError):
        given = range(*map(int, GIVEN_PORTS.read_text().split()))
        others = [port for port in range(LOWEST_PORT, HIGHEST_PORT) if port not in given]
        return _bound(random.sample(others, min(len(others), 50 * number)), number)
    return _bound([0] * number, number)


def _bound(ports: list[int], number: int) -> list[int]:
    """The first ``number`` of them that can be bound. Raises ``OSError`` if there are not so many."""
    with contextlib.ExitStack() as stack:
        free: list[int] = []
        for port in ports:
            one = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind(("", port))
                free.append(one.getsockname()[1])
            if len(free) == number:
                return free
    raise OSError(f"fewer than {number} ports are free")
