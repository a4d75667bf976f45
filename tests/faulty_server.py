"""A proxy before a server, which answers some requests with an error or late."""

import contextlib
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx


class Faults(ThreadingHTTPServer):
    """Passes requests on to ``upstream``, but for those that ``refused`` maps to a status, each as often as it says; and
    keeps answers back for as long as ``slow`` says."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), PassedOn)
        self.upstream = upstream
        self.refused: dict[str, list[int]] = {}  # pattern of "METHOD path" -> statuses to come
        self.slow: dict[str, list[float]] = {}  # pattern -> seconds, once each, after upstream has answered
        self.seen: list[str] = []
        self.lock = threading.Lock()

    def status_for(self, request: str) -> int | None:
        return self._next(self.refused, request)

    def seconds_for(self, request: str) -> float:
        return self._next(self.slow, request) or 0.0

    def _next(self, due: dict[str, list], request: str) -> Any:
        with self.lock:
            for pattern, values in due.items():
                if values and re.search(pattern, request):
                    self.seen.append(pattern)
                    return values.pop(0)
        return None


class PassedOn(BaseHTTPRequestHandler):
    """One request."""

    server: Faults

    def answer(self) -> None:
        if self.headers.get("Upgrade"):
            self.tunnel()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = self.server.status_for(f"{self.command} {self.path}")
        if status is not None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        headers = {
            key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")
        }
        got = httpx.request(
            self.command, self.server.upstream + self.path, content=body, headers=headers, timeout=120
        )
        time.sleep(self.server.seconds_for(f"{self.command} {self.path}"))
        self.send_response(got.status_code)
        self.send_header("Content-Type", got.headers.get("content-type", "application/json"))
        if "Retry-After" in got.headers:
            self.send_header("Retry-After", got.headers["Retry-After"])
        self.send_header("Content-Length", str(len(got.content)))
        self.end_headers()
        self.wfile.write(got.content)

    def tunnel(self) -> None:
        """A WebSocket's bytes, both ways, until one side ends."""
        upstream = httpx.URL(self.server.upstream)
        with socket.create_connection((upstream.host, upstream.port)) as other:
            other.sendall(f"{self.requestline}\r\n{self.headers}".encode())
            back = threading.Thread(target=pumped, args=(other, self.connection), daemon=True)
            back.start()
            pumped(self.connection, other)
            back.join()
        self.close_connection = True

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def pumped(source: socket.socket, sink: socket.socket) -> None:
    """What comes from one side goes to the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
