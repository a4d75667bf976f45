"""A server on this machine that speaks OpenAI's chat completions, with faults on demand."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SIDES = re.compile(r"(?s)\[Request\]\n(.*?)\n\n\[Answer A\]\n(.*?)\n\n\[Answer B\]\n(.*?)\n\nSay in a few")


def prefers_longer(prompt: str, first: str, second: str) -> str:
    """A fair judge, whose order does not matter."""
    return "tie" if len(first) == len(second) else "AB"[len(second) > len(first)]


class JudgeServer(ThreadingHTTPServer):
    """Judges by ``verdict(prompt, first, second)``, after the faults in ``faults`` have been used up, one a request: a
    status, a pair of status and headers, bytes as a body with status 200, or a float: seconds of silence."""

    daemon_threads = True

    def __init__(self, verdict: Callable[[str, str, str], str]) -> None:
        super().__init__(("127.0.0.1", 0), ChatCompletions)
        self.verdict = verdict
        self.faults: list[Any] = []
        self.asked: list[dict] = []  # bodies of requests that got a verdict
        self.requests = 0
        self.keys: set[str | None] = set()
        self.key: str | None = None  # which others are refused
        self.at_once = self.most_at_once = 0
        self.seconds = 0.0  # that each reply takes
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def questions(self) -> list[str]:
        """All that got a verdict, in the order in which they came."""
        return [body["messages"][0]["content"] for body in self.asked]


class ChatCompletions(BaseHTTPRequestHandler):
    """One request."""

    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests += 1
            server.keys.add(self.headers.get("Authorization"))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            fault = server.faults.pop(0) if server.faults else None
        try:
            self._answer(body, fault)
        finally:
            with server.lock:
                server.at_once -= 1

    def _answer(self, body: dict, fault: Any) -> None:
        server = self.server
        if self.path != "/v1/chat/completions":
            return self._send(404, b"no such path")
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            return self._send(401, f"wrong key: {self.headers.get('Authorization')}".encode())
        if isinstance(fault, float):
            time.sleep(fault)
        elif isinstance(fault, tuple):
            return self._send(fault[0], b"later", fault[1])
        elif isinstance(fault, int):
            return self._send(fault, b'{"error": {"message": "a fault on demand"}}')
        elif isinstance(fault, bytes):
            return self._send(200, fault)
        time.sleep(server.seconds)
        found = SIDES.search(body["messages"][0]["content"])
        with server.lock:
            server.asked.append(body)
        said = server.verdict(*found.groups()) if found else "tie"
        text = said if said.startswith("=") else f"Both are short.\nVerdict: {said}"
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text.removeprefix("=")},
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
        }
        self._send(200, json.dumps(reply).encode())

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        with suppress(ConnectionError):  # a client that waited no longer
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def judge_server(verdict: Callable[[str, str, str], str] = prefers_longer) -> Iterator[JudgeServer]:
    """A server until the block ends."""
    server = JudgeServer(verdict)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
