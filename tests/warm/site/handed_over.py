"""This process as the stand-in of one that the server forks: it passes signals on and ends as the other ends."""

import ctypes
import json
import os
import signal
import socket
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run(address: str, argv: list[str]) -> None:
    """Have the server run ``argv`` with this process's environment, folder, input and output. Does not return."""
    if os.environ.get("PAIRLINE_DIE_WITH_PARENT") == "1":  # torchrun gives its ranks sessions of their own
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        try:
            server.connect(address)
        except OSError as error:
            print(f"the server that forks for the tests is dead: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        asked: list[int] = []

        def pass_on(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            if begun:
                pass_all_on()

        def pass_all_on() -> None:
            while asked:  # each once, whenever the next one comes
                server.send(json.dumps(asked.pop(0)).encode())

        begun = False
        for number in PASSED_ON:
            signal.signal(number, pass_on)
        request = {"argv": argv, "env": dict(os.environ), "cwd": os.getcwd()}
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        begun = True
        pass_all_on()
        answer = server.recv(64)
    code = (
        json.loads(answer) if answer else -signal.SIGKILL
    )  # no answer: the server was killed, and what it forked
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)
