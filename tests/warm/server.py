"""A process that forks: it imports what its kind of program needs (kinds.py), then turns every request of a stand-in into a
child of its own.

A child ends when its stand-in ends, and all of them with this process, which ends when its standard input does: nothing
outlives the tests. It never computes anything itself, so no thread of torch's is lost in a fork.
"""

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import sys
import threading
import traceback
import weakref
from dataclasses import dataclass

from dpo_core.contract.importing import importing
from dpo_core.contract.process_group import ask_to_stop
from tests.warm.kinds import KINDS, Kind, take_environment

LAUNCHER = "accelerate.commands.launch"
LARGEST_REQUEST = 1 << 20
PR_SET_PDEATHSIG = 1


@dataclass
class Forked:
    """A child at work for a stand-in."""

    pid: int
    is_launcher: bool
    standin: socket.socket

    def signal(self, number: int) -> None:
        """What a launcher is asked reaches what it has started, as the launcher of flows asks (``ask_to_stop``)."""
        if self.is_launcher and number == signal.SIGTERM and self._leads_its_group():
            ask_to_stop(self.pid)
            return
        with contextlib.suppress(ProcessLookupError):
            if self._leads_its_group():
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def _leads_its_group(self) -> bool:
        """Not yet where it has just been forked: a signal to its group would reach nobody, and it would live on."""
        with contextlib.suppress(ProcessLookupError):
            return os.getpgid(self.pid) == self.pid
        return True


def serve(listener: socket.socket, kind: Kind) -> None:
    """Until standard input ends."""
    if not kind.at_once and sys.stdin in select.select([sys.stdin, listener], [], [])[0]:
        return
    os.environ["DS_ACCELERATOR"] = "cpu"  # read at DeepSpeed's import, and set by the engine where it is used
    os.environ["DO_NOT_TRACK"] = "1"  # at Prefect's, which would start a thread
    with importing():  # so a child's collections neither visit what was imported nor, by marking it, copy it
        for module in kind.imported:
            importlib.import_module(module)
    for finalizer in weakref.finalize._registry:  # libraries' operators take themselves back, for seconds
        finalizer.atexit = False
    children: dict[int, Forked] = {}
    ended, wake = socket.socketpair()
    for end in (ended, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as waiting:
        for readable in (sys.stdin, listener, ended):
            waiting.register(readable, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is sys.stdin:
                    for child in children.values():
                        child.kill()
                    return
                if key.fileobj is listener:
                    standin, _ = listener.accept()
                    waiting.register(standin, selectors.EVENT_READ)
                elif key.fileobj is ended:
                    ended.recv(4096)
                    _collect(children)
                else:
                    _hear(key.fileobj, kind, children, waiting)


def _hear(
    standin: socket.socket, kind: Kind, children: dict[int, Forked], waiting: selectors.BaseSelector
) -> None:
    """A stand-in asks for a child, passes a signal on, or has died."""
    try:
        message, files, _, _ = socket.recv_fds(standin, LARGEST_REQUEST, 3)
    except ConnectionResetError:  # it died before it had read its answer
        message, files = b"", []
    child = next((child for child in children.values() if child.standin is standin), None)
    if not message:
        waiting.unregister(standin)
        standin.close()
        if child:
            child.kill()
        return
    asked = json.loads(message)
    if isinstance(asked, int):
        if child:  # else it has ended, and its stand-in has not read so
            child.signal(asked)
        return
    if (pid := os.fork()) == 0:
        _become(asked, files, kind)
    children[pid] = Forked(pid, asked["argv"][0] == LAUNCHER, standin)
    for file in files:
        os.close(file)


def _collect(children: dict[int, Forked]) -> None:
    """Tell stand-ins of children that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        child = children.pop(pid)
        with contextlib.suppress(OSError):
            child.standin.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())


def _become(request: dict, files: list[int], kind: Kind) -> None:
    """Be the process that was asked for. Does not return."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(3, max(files) + 64)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 (multiprocessing closes it in its children)
        os.chdir(request["cwd"])
        sys.argv = request["argv"][:]
        take_environment(kind, request["env"])
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)
        sys.path[0] = request["cwd"]
        sys.modules.pop(sys.argv[0], None)  # runpy would warn of a program that is imported already
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            importlib.import_module("atexit")._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), KINDS[sys.argv[2]])
