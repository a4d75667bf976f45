"""What a step in a container may do, as the running container shows it, and what it may not, as trying shows it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from tasks.launch.context import Context
from tests.containers.launch.stand_in import ROOT, ContainerStep, command_of
from tests.containers.launch.watching import container_of
from tests.waiting import wait_until

pytestmark = pytest.mark.integration
GIB = 2**30
TOKEN = "hf_planted_token_of_the_test"
ATTEMPTS = """
    import ctypes, socket, subprocess
    libc = ctypes.CDLL(None, use_errno=True)

    def attempt(name, act):
        try:
            act()
            print("BROKE OUT:", name, flush=True)
        except Exception as error:
            print("refused:", name, "|", type(error).__name__, error, flush=True)

    def call(function, *arguments):
        if function(*arguments) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def execute(path):
        path.write_text("#!/bin/sh\\nexit 0\\n")
        path.chmod(0o755)
        subprocess.run([path], check=True)

    source = {source!r}
    for place in ("/", "/usr", "/etc", "/run", "/opt/stand-in", "/var/tmp", "/sys/fs/cgroup", source, str(folder.parent),
                  str(folder.parent.parent)):
        attempt("write to " + place, lambda: Path(place, "planted").write_text("x"))
    attempt("change an input", lambda: Path(source, "model").write_text("x"))
    attempt("delete an input", lambda: Path(source, "model").unlink())
    attempt("see another step of the store", lambda: Path({other!r}).read_text())
    attempt("reach an address", lambda: socket.create_connection(("1.1.1.1", 53), timeout=3))
    attempt("reach this machine", lambda: socket.create_connection(("172.17.0.1", 22), timeout=3))
    attempt("resolve a name", lambda: socket.getaddrinfo("huggingface.co", 443))
    attempt("have a network card", lambda: 1 / (len(socket.if_nameindex()) - 1))
    attempt("open a raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
    attempt("speak to the engine", lambda: socket.socket(socket.AF_UNIX).connect("/var/run/docker.sock"))
    attempt("become root", lambda: os.setuid(0))
    attempt("join root's group", lambda: os.setgid(0))
    attempt("gain by a set-user-id program", lambda: subprocess.run(
        ["su", "-c", "true"], check=True, stdin=subprocess.DEVNULL, capture_output=True))
    attempt("mount", lambda: call(libc.mount, b"none", b"/tmp", b"tmpfs", 0, None))
    attempt("make a namespace", lambda: call(libc.unshare, 0x10000000))
    attempt("make a device", lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0)))
    attempt("give a file away", lambda: os.chown(folder / "starts", 0, 0))
    attempt("execute from scratch", lambda: execute(Path("/tmp/program")))
    attempt("raise a limit", lambda: os.nice(-5))
    attempt("set the clock", lambda: time.clock_settime(time.CLOCK_REALTIME, 0))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({{name: status[name].split()[0] for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}}))
    succeed()"""


@pytest.fixture
def planted(tmp_path: Path) -> tuple[str, str]:
    """An input and another step's file in the same store."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model").write_text("weights")
    other = tmp_path / "store" / "train" / "ab" / "weights"
    other.parent.mkdir(parents=True)
    other.write_text("another run's")
    return str(tmp_path / "source"), str(other)


def test_a_step_cannot_break_out(make: Callable[..., ContainerStep], planted):
    source, other = planted
    body = ATTEMPTS.format(source=source, other=other)
    step = make(body)
    step.run()
    *attempts, facts = step.log_lines
    assert [line for line in attempts if not line.startswith("refused: ")] == []
    assert len(attempts) == body.count("attempt(") - 1 + 9  # the definition is none, the first is ten
    assert json.loads(facts) == {
        "Uid": str(os.getuid() or 10001),
        "CapEff": "0" * 16,
        "CapBnd": "0" * 16,
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }
    assert (Path(source) / "model").read_text() == "weights"


def test_the_running_container_shows_its_settings(make, client: docker.DockerClient):
    step = make(
        """
        import resource
        print(resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= 65536, resource.getrlimit(resource.RLIMIT_CORE), flush=True)
        wait_for("go-on")
        succeed()""",
        shared_memory_gib=0.5,
        max_processes=100,
    )
    with ThreadPoolExecutor() as pool:
        run = pool.submit(step.run)
        wait_until(lambda: step.log_lines)
        container = container_of(client, step)
        step.go_on()
        run.result()
    assert step.log_lines == ["True (0, 0)"]
    config, host = container.attrs["Config"], container.attrs["HostConfig"]
    user = os.getuid() or 10001
    assert config["User"].startswith(f"{user}:")
    expected = {
        "ReadonlyRootfs": True,
        "Privileged": False,
        "NetworkMode": "none",
        "CapAdd": None,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "Init": True,
        "PidsLimit": 100,
        "Memory": GIB,
        "MemorySwap": GIB,
        "ShmSize": GIB // 2,
        "AutoRemove": False,
        "Binds": None,
        "Ulimits": [{"Name": "core", "Hard": 0, "Soft": 0}],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "33554432", "max-file": "4"}},
    }
    assert {name: host[name] for name in expected} == expected
    assert host["Tmpfs"] == {"/tmp": "size=4294967296,mode=1777"}
    assert {mount["Destination"]: mount["RW"] for mount in container.attrs["Mounts"]} == {
        str(step.root / "source"): False,
        str(step.folder): True,
    }
    assert config["StopSignal"] == "SIGTERM"
    assert config["StopTimeout"] == 60
    assert config["Labels"]["pairline.job"] == step.job.fingerprint


def test_a_token_is_a_file_of_the_step_that_needs_one_and_of_no_other(make, client, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    look = """
        file = Path(os.environ.get("HF_TOKEN_PATH", "/run/secrets/HF_TOKEN"))
        print(file.read_text() == {token!r}[::-1] if file.exists() else "no token", flush=True)
        print(oct(file.stat().st_mode & 0o777) if file.exists() else "no file")
        print([name for name, value in os.environ.items() if value == {token!r}[::-1]])
        wait_for("go-on")
        succeed()""".format(token=TOKEN[::-1])  # reversed: the program's text lies in the job's folder
    step = make(look)
    step.go_on()
    step.run()
    assert step.log_lines == ["no token", "no file", "[]"]
    (step.folder / "go-on").unlink()
    lines: list[str] = []
    with_token = replace(command_of(step), secrets=("HF_TOKEN",))
    with ThreadPoolExecutor() as pool:
        run = pool.submit(step.launcher.run, (with_token,), Context(), lines.append, lambda: None)
        wait_until(lambda: lines)
        shown = json.dumps(container_of(client, step).attrs)
        left = [path for path in step.root.rglob("*") if path.is_file() and TOKEN in text_of(path)]
        step.go_on()
        assert run.result().exit_code == 0
    assert lines == ["True", "0o400", "[]"]
    assert TOKEN not in shown
    assert left == []
    # Another worker of the tests may have a token of its own there.
    assert not [
        file for file in Path("/dev/shm").glob("pairline-secrets-*/HF_TOKEN") if TOKEN in text_of(file)
    ]


def text_of(file: Path) -> str:
    """What is in it; nothing if it has gone meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return file.read_text(errors="replace")
    return ""


WITH_TOKEN = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.containers.launch.stand_in import ROOT, Context, ContainerStep, command_of
step = ContainerStep(Path(sys.argv[1]), *sys.argv[2:])
ended = step.launcher.run((replace(command_of(step), secrets=("HF_TOKEN",)),), Context(), print, lambda: None)
sys.exit(ended.exit_code)
"""


def test_an_engine_that_does_not_see_our_memory_gets_the_token_from_the_store(make):
    """As where the orchestrator is itself in a container."""
    step = make("print(len(Path(os.environ['HF_TOKEN_PATH']).read_text())); succeed()")
    apart = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh"]
    run = subprocess.run(
        [*apart, sys.executable, "-c", WITH_TOKEN, step.root, step.address, step.image],
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_TOKEN": TOKEN},
        capture_output=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, f"{len(TOKEN)}\n"), run.stderr
    assert not list(step.folder.parent.rglob("HF_TOKEN"))


def test_the_owner_can_read_and_delete_what_a_step_left(make):
    step = make("(folder / 'sub').mkdir(); (folder / 'sub' / 'file').write_text('x'); succeed()")
    step.run()
    assert (step.folder / "sub" / "file").stat().st_uid == (os.getuid() or 10001)
    (step.folder / "sub" / "file").unlink()
    (step.folder / "sub").rmdir()
