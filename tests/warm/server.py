"""The process that forks: it imports what steps need, then turns every request of a stand-in into a child of its own.

A child ends when its stand-in ends, and all of them with this process, which ends when its standard input does: nothing
outlives the tests. It never computes anything itself, so no thread of torch's is lost in a fork.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import random
import runpy
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

LAUNCHER = "accelerate.commands.launch"
IMPORTED = (
    "accelerate.commands.launch",
    "torch.distributed.run",
    "dpo_core.steps.train",
    "dpo_core.steps.reference",
    "dpo_core.steps.evaluate",
    "dpo_core.steps.export",
    "dpo_core.steps.answer",
    "dpo_core.steps.judge",
    "dpo_core.judging.reward_model",
    "dpo_core.steps.mix",
    "dpo_core.steps.convert",
    "dpo_core.engine.plain",
    "dpo_core.contract.environment",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "pandas",
    "pyarrow.compute",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # which it imports once a model is handed to it, and the compiler with it
)
# Seconds, in the environments that have the library.
ELSEWHERE = {"olmo_core": "dpo_core.model.olmo_core", "lm_eval": "dpo_core.steps.benchmark"}
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


def serve(listener: socket.socket) -> None:
    """Until standard input ends."""
    os.environ["DS_ACCELERATOR"] = "cpu"  # read at DeepSpeed's import, and set by the engine where it is used
    there = [module for library, module in ELSEWHERE.items() if importlib.util.find_spec(library)]
    with importing():  # so a child's collections neither visit what was imported nor, by marking it, copy it
        for module in (*IMPORTED, *there):
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
                    _hear(key.fileobj, children, waiting)


def _hear(standin: socket.socket, children: dict[int, Forked], waiting: selectors.BaseSelector) -> None:
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
        _become(asked, files)
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


def _become(request: dict, files: list[int]) -> None:
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
        _take_environment(request["env"])
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)
        sys.argv = request["argv"][:]
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


def _take_environment(environment: dict[str, str]) -> None:
    """With what an interpreter's own start would have made of it."""
    import numpy
    import torch

    from tests.programs.small_chunks import SMALL_CHUNKS_SITE, cut_logits

    os.environ.clear()
    os.environ.update(environment)
    for folder in reversed(environment.get("PYTHONPATH", "").split(os.pathsep)):
        if folder and folder not in sys.path:
            sys.path.insert(1, folder)
        if folder == str(
            SMALL_CHUNKS_SITE
        ):  # its sitecustomize comes second, and changes what is imported after it
            cut_logits()
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    random.seed()
    numpy.random.seed()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
