"""A container engine of the tests' own, that may be killed: its own data, socket and containerd, no networks."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

from tests.waiting import wait_until


class PrivateEngine:
    """``dockerd`` and, as on a real machine, a ``containerd`` beside it. ``start`` after ``kill`` finds containers again;
    without live-restore it ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, f"unix://{folder}/docker.sock"
        self._containerd = self._program(
            "containerd",
            "--root",
            folder / "c/root",
            "--state",
            folder / "c/state",
            "--address",
            folder / "c.sock",
            "--config",
            "/dev/null",
        )
        self._daemon: subprocess.Popen | None = None
        self._wait_until((folder / "c.sock").exists, self._containerd)

    def start(self, live_restore: bool = True) -> None:
        """Start and wait until it answers. It has a network of its own: without a bridge it would delete the machine's
        docker0, which is another engine's."""
        self._daemon = self._program(
            "unshare",
            "--net",
            "dockerd",
            "--data-root",
            self.folder / "data",
            "--exec-root",
            self.folder / "exec",
            "--pidfile",
            self.folder / "pid",
            "--host",
            self.address,
            "--containerd",
            self.folder / "c.sock",
            "--bridge=none",
            "--iptables=false",
            *(["--live-restore"] if live_restore else []),
        )
        self._wait_until(self._answers, self._daemon)

    def _program(self, *argv: str | Path) -> subprocess.Popen:
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)

    def _wait_until(self, ready: Callable[[], bool], program: subprocess.Popen) -> None:
        wait_until(
            ready,
            f"an answer of {program.args[0]}",
            of=program,
            tell=lambda: (self.folder / "log").read_text()[-2000:],
        )

    def kill(self) -> None:
        """kill -9 of the daemon alone; what it runs runs on."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        (self.folder / "pid").unlink(missing_ok=True)  # its number may belong to another process by now

    def client(self) -> docker.DockerClient:
        """docker-py, connected."""
        return docker.DockerClient(base_url=self.address, version="1.41", timeout=60)

    def close(self) -> None:
        """End everything and leave nothing on the disk."""
        with (
            contextlib.suppress(DockerException, RequestException),
            contextlib.closing(self.client()) as client,
        ):
            for container in client.containers.list(all=True, ignore_removed=True):
                container.remove(force=True)
        for program in filter(None, (self._daemon, self._containerd)):
            if program.poll() is None:
                program.kill()  # nothing is left to end in order
                program.wait()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        with (
            contextlib.suppress(DockerException, RequestException),
            contextlib.closing(self.client()) as client,
        ):
            return client.ping()
        return False


@contextlib.contextmanager
def private_engine() -> Iterator[PrivateEngine]:
    """A running one. Not in a test's own folder, as a socket's path may not be long."""
    engine = PrivateEngine(Path(tempfile.mkdtemp(prefix="engine-")))
    try:
        engine.start()
        yield engine
    finally:
        engine.close()
