"""`pairline up`: server, work pool, deployments, limits, automations, worker. Each part only if it is not there already.

The order matters: a worker that finds no pool makes one of its own, and a deployment needs the pool.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from dpo_core.contract.errors import ConfigError, PairlineError
from flows.serve.background import Background, send
from flows.serve.credential import (
    API_URL_FILE,
    is_made_here,
    login_link,
    prepare_credential,
    without_credential,
)
from flows.serve.database import remember_database
from flows.serve.private_folder import make_private
from flows.serve.run_processes import processes_of_server
from flows.serve.settings import HOST, PROJECT, ServeSettings
from tasks.text import terminal

SECONDS_FOR_A_START = 240  # a first start makes the database: 15 s on an idle laptop
RUN_GRACE_SECONDS = 75  # a run writes a checkpoint first
SERVER_GRACE_SECONDS, WORKER_GRACE_SECONDS = 15, 15
POLL_SECONDS = 0.5
Say = Callable[[str], None]


def server_of(settings: ServeSettings) -> Background:
    """Return the Prefect server of this installation."""
    return Background("server", settings.folder)


def worker_of(settings: ServeSettings) -> Background:
    """Return its worker."""
    return Background("worker", settings.folder)


def bring_up(settings: ServeSettings, say: Say = terminal.say) -> None:
    """Start what does not run. Raises ``ConfigError`` if the port is taken, ``PairlineError`` if a part does not start."""
    make_private(settings.folder)
    make_private(settings.prefect_home)
    credential = prepare_credential(settings.folder)
    environment = settings.environment()
    server = server_of(settings)
    if without_credential(credential, settings.api_url, server.pid(), worker_of(settings).pid()):
        say(
            "password what runs was started without it, and is started again; runs at work go on from their last checkpoint"
        )
        bring_down(settings, say)
    if server.pid() is None:
        check_port(settings.port)
    argv = [sys.executable, "-m", "flows.serve.server", str(settings.port)]
    started = server.start(argv, settings.server_environment(), PROJECT)
    wait_until_healthy(settings, server)
    remember_database(settings.prefect_home)
    (settings.folder / API_URL_FILE).write_text(settings.api_url)
    say(f"server   {'started' if started else 'runs'}  {settings.ui_url}  ({server.log})")
    os.environ.update(
        environment
    )  # the client reads its settings when Prefect is imported, which happens here
    from flows.serve.deployed import is_deployed, remember_deployed
    from flows.serve.server_objects import prepare_limits_and_automations, prepare_pool
    from flows.serve.stranded import resume_overlooked_crashes, settle_stranded_runs

    prepare_pool(settings)
    if not is_deployed(settings.folder):
        deploy(environment)
    say(f"prefect  {prepare_limits_and_automations(settings)}")
    remember_deployed(settings.folder)
    worker, name = worker_of(settings), f"{socket.gethostname()}-{settings.port}"
    for line in settle_stranded_runs(name) if worker.pid() is None else resume_overlooked_crashes():
        say(f"run      {line}")
    started = worker.start(settings.worker_argv(name), environment, PROJECT)
    time.sleep(POLL_SECONDS)
    worker.check_alive()
    say(f"worker   {'started' if started else 'runs'}  ({worker.log})")
    say_what_now(settings, credential, say)


def say_what_now(settings: ServeSettings, credential: str, say: Say) -> None:
    """Say where to go on, with a link that logs in; a password that the operator chose is not shown."""
    made = is_made_here(credential)
    link = login_link(settings.ui_url, credential) if made else f"{settings.ui_url}/deployments"
    login = (
        "The link logs a browser in, for later visits, too. Whoever has it can run programs as you: keep it safe."
        if made
        else "It asks for the password that you have set."
    )
    say(
        f"\nOpen {link} : choose dpo-stage/manual, Run, Custom run, and change what you like.\n{login}\n"
        f"Tell of an SFT checkpoint: PREFECT_API_URL={settings.api_url} pairline emit-sft DIRECTORY\n"
        "The whole chain on a tiny model: make demo-chain.  Stop everything: make down."
    )


def bring_down(settings: ServeSettings, say: Say = terminal.say) -> None:
    """Stop runs, worker and server, in this order: runs report how they ended.

    Runs at work write a checkpoint and end as Crashed by a termination signal; `resume-crashed` has them go on after the
    next `pairline up`.
    """
    worker, server = worker_of(settings), server_of(settings)
    worker_lived = worker.pid() is not None
    runs, killed = stop_runs(settings.api_url, worker.pid())
    worker.stop(WORKER_GRACE_SECONDS)
    say(f"runs     {runs} stopped" + (f", {killed} of them killed" if killed else ""))
    say(f"worker   {'stopped' if worker_lived else 'did not run'}")
    say(f"server   {'stopped' if server.stop(SERVER_GRACE_SECONDS) else 'did not run'}")


def stop_runs(api_url: str, worker_pid: int | None) -> tuple[int, int]:
    """Ask the runs of this machine that belong to the server at ``api_url`` to end, kill those that do not, and the worker.

    The worker is held still meanwhile: it would start the next run, and, asked to stop, would itself send its runs a signal,
    the second one, which cuts short what the first one has begun: a step would be left half stopped. It never wakes, as it
    would start the very runs that were stopped, which are handed out again at once, before it heeds a signal (seen).
    -> how many there were, how many were killed
    """
    if worker_pid is not None:
        send(worker_pid, signal.SIGSTOP)
    try:
        runs = processes_of_server(api_url)
        for pid in runs:
            send(pid, signal.SIGTERM)
        deadline = time.monotonic() + RUN_GRACE_SECONDS
        while (left := processes_of_server(api_url)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        for pid in left:
            send(pid, signal.SIGKILL)
    finally:
        if worker_pid is not None:
            send(worker_pid, signal.SIGKILL)
    return len(runs), len(left)


def check_port(port: int) -> None:
    """Raise ``ConfigError`` if something else listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"Port {port} on {HOST} is taken by another program ({error.strerror}). Stop it, or choose "
                "another port: PAIRLINE_PORT=4201 make up."
            ) from error


def wait_until_healthy(settings: ServeSettings, server: Background) -> None:
    """Return when the server answers. Raises ``PairlineError`` with the end of its log if it does not."""
    deadline = time.monotonic() + SECONDS_FOR_A_START
    while time.monotonic() < deadline:
        server.check_alive()
        try:
            with urllib.request.urlopen(f"{settings.api_url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_SECONDS)
    raise PairlineError(
        f"The server did not answer on {settings.api_url} within {SECONDS_FOR_A_START} s. Its log is "
        f"{server.log}; its last lines:\n{server.last_lines()}"
    )


def deploy(environment: dict[str, str], file: Path = PROJECT / "prefect.yaml") -> None:
    """Bring the deployments of a prefect.yaml to the server; schedules stay on or off as they were switched there.

    Raises ``PairlineError`` with what `prefect deploy` said.
    """
    from flows.serve.switches import switches_kept

    argv = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    with switches_kept():
        done = subprocess.run(
            argv,
            cwd=PROJECT,
            env={**environment, "PWD": str(PROJECT)},
            text=True,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=SECONDS_FOR_A_START,
        )
    if done.returncode != 0:
        raise PairlineError(
            f"The deployments of {file} were refused:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
