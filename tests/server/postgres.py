"""A private PostgreSQL cluster out of Debian's package, on loopback, for as long as a test needs it."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.server.conftest import free_port

USER = "prefect"


@dataclass(frozen=True)
class Cluster:
    """A running cluster: its address with the password, as PAIRLINE_DATABASE_URL takes it, and its folder."""

    url: str
    data: Path

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """It answers nothing, as if its disk wrote nothing."""
        first = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(first, signal.SIGSTOP)  # it starts no other from now on
        family = [first]
        for pid in map(int, subprocess.check_output(["pgrep", "--parent", str(first)], text=True).split()):
            with contextlib.suppress(ProcessLookupError):  # they come and go
                os.kill(pid, signal.SIGSTOP)
                family.append(pid)
        try:
            yield
        finally:
            for pid in reversed(family):
                os.kill(pid, signal.SIGCONT)


def programs() -> Path:
    """The newest version's folder. Fails where the package is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    assert found, "PostgreSQL is not installed: apt-get install postgresql"
    return found[-1]


@contextlib.contextmanager
def cluster(password: str) -> Iterator[Cluster]:
    """A cluster for as long as the test runs."""
    folder, port, bin_ = Path(tempfile.mkdtemp(prefix="pairline-postgres-")), free_port(), programs()
    (folder / "password").write_text(password)
    # The programs refuse to run as root; the package has made a user for them.
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    for path in (folder, folder / "password"):
        os.chown(path, user.pw_uid, user.pw_gid)

    def as_user(*argv: str) -> None:
        other = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        # Not a pipe: the server would keep it open, and a reader would wait for its end.
        with (folder / "log").open("a+") as log:
            done = subprocess.run(argv, cwd=folder, stdout=log, stderr=log, check=False, timeout=300, **other)
        assert done.returncode == 0, (folder / "log").read_text()

    data = str(folder / "data")
    try:
        as_user(
            str(bin_ / "initdb"),
            "--pgdata",
            data,
            "--username",
            USER,
            "--pwfile",
            str(folder / "password"),
            "--auth",
            "scram-sha-256",
            "--no-sync",
        )
        as_user(
            str(bin_ / "pg_ctl"),
            "--pgdata",
            data,
            "--wait",
            "--options",
            f"-p {port} -h 127.0.0.1 -k {folder} -F",
            "start",
        )
        try:
            yield Cluster(f"postgresql+asyncpg://{USER}:{password}@127.0.0.1:{port}/postgres", Path(data))
        finally:
            as_user(str(bin_ / "pg_ctl"), "--pgdata", data, "--mode", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
