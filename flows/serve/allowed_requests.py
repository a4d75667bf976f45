"""What stands between the network and Prefect's server, whose password guards its API alone.

A page in this machine's browser can have it ask the server: by another name of 127.0.0.1 (DNS rebinding), over a WebSocket,
to which CORS does not apply, or by laying the server's pages under its own. Prefect 3.8 stops none of these.
"""

import base64
import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from flows.serve.credential import LOGIN_PATH

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OWN_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
DESCRIPTIONS = ("/docs", "/redoc", "/openapi.json")  # Prefect's pages for programmers, outside of its API
UNFRAMED = [(b"content-security-policy", b"frame-ancestors 'self'"), (b"x-frame-options", b"SAMEORIGIN")]

LOGIN_SCRIPT = """
const password = decodeURIComponent(location.hash.slice(1));
history.replaceState(null, "", location.pathname);
fetch("/api/admin/version", {headers: {Authorization: "Basic " + password}}).then(answer => {
  if (!answer.ok) throw 0;
  localStorage.setItem("prefect-password", password);
  location.replace("/deployments");
}).catch(() => document.getElementById("said").textContent =
  "The server has another password than this link. `make up` prints the right link and leaves alone what runs.");
"""
LOGIN_PAGE = f"""<!doctype html>
<meta charset="utf-8"><title>Pairline</title>
<p id="said">Logging in ...</p>
<script>{LOGIN_SCRIPT}</script>
""".encode()
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(LOGIN_SCRIPT.encode()).digest())
LOGIN_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        b"script-src 'sha256-" + _SCRIPT_HASH + b"'",
    ),
]


@dataclass(frozen=True, slots=True)
class AllowedRequests:
    """``app`` for those who ask by a name of its own and from its own pages. ``ui_url``: the address that they have;
    ``hosts``: more names, from the operator; ``origins``: of other pages that may ask, `*` for all; ``credential``: the
    password, for what Prefect does not guard."""

    app: App
    ui_url: str
    hosts: frozenset[str]
    origins: frozenset[str]
    credential: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or hand on, as the ASGI protocol has it."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket" and not (self._is_own_host(scope) and self._is_own_page(scope)):
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if not self._is_own_host(scope):
            names = ", ".join(_header(scope, b"host")) or "no name"
            await _answer(
                send,
                421,
                f"This server is {self.ui_url}, and was asked as {names}. Other names that it answers "
                "to stand in PAIRLINE_ALLOWED_HOSTS when `pairline up` starts it.\n",
            )
        elif path.startswith(DESCRIPTIONS) and not self._knows_the_password(scope):
            await _answer(send, 401, "Unauthorized\n")
        elif _host_name(_header(scope, b"host")[0]) in OWN_NAMES - {"127.0.0.1"} and _is_page(scope):
            # A password that a page keeps belongs to its name, and localhost:PORT may be another user's at ::1.
            query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
            where = f"{self.ui_url}{scope['raw_path'].decode('latin-1')}{query}".encode("latin-1")
            await _answer(send, 307, "", [(b"location", where)])
        elif path == LOGIN_PATH and scope["method"] in ("GET", "HEAD"):
            await _answer(send, 200, LOGIN_PAGE, LOGIN_HEADERS)
        else:
            await self.app(scope, receive, _unframed(send))

    def _is_own_host(self, scope: Scope) -> bool:
        asked = _header(scope, b"host")
        return len(asked) == 1 and (
            _host_name(asked[0]) in OWN_NAMES | self.hosts or asked[0].lower() in self.hosts
        )

    def _is_own_page(self, scope: Scope) -> bool:
        """Programs name no origin; browsers always do."""
        return all(origin in self.origins or "*" in self.origins for origin in _header(scope, b"origin"))

    def _knows_the_password(self, scope: Scope) -> bool:
        right = b"Basic " + base64.b64encode(self.credential.encode())
        return any(
            hmac.compare_digest(said.encode("latin-1"), right) for said in _header(scope, b"authorization")
        )


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _host_name(host: str) -> str:
    """Without its port: any will do, as it may be a tunnel's. It is names that an attacker's DNS can turn to us."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _is_page(scope: Scope) -> bool:
    """What a browser shows in a tab, as against what its pages and programs ask for."""
    return (
        scope["method"] == "GET"
        and not scope["path"].startswith("/api")
        and any("text/html" in accepted for accepted in _header(scope, b"accept"))
    )


def _unframed(send: Send) -> Send:
    """Answers that no other page can lay under its own and have a person click on."""

    async def send_unframed(message: Scope) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *UNFRAMED]}
        await send(message)

    return send_unframed


async def _answer(
    send: Send, status: int, body: str | bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    content = body.encode() if isinstance(body, str) else body
    kind = headers if headers is not None else [(b"content-type", b"text/plain; charset=utf-8")]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                *kind,
                (b"content-length", str(len(content)).encode()),
                (b"x-content-type-options", b"nosniff"),
            ],
        }
    )
    await send({"type": "http.response.body", "body": content})
