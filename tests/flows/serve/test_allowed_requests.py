"""Which requests reach Prefect's server, by their headers. tests/server/test_authentication.py attacks a real one."""

import asyncio
import base64
import hashlib
import re

import pytest

from flows.serve.allowed_requests import AllowedRequests

URL, PASSWORD = "http://127.0.0.1:4200", "pairline:right"
BASIC = f"Basic {base64.b64encode(PASSWORD.encode()).decode()}"


def sent(
    path: str = "/api/flows/",
    kind: str = "http",
    method: str = "GET",
    hosts: frozenset[str] = frozenset(),
    **headers: str | list[str],
) -> list[dict]:
    """What a caller is sent; the server behind answers everything with 204, and opens every socket."""

    async def server(scope: dict, receive: object, send: object) -> None:
        await send(
            {"type": "http.response.start", "status": 204, "headers": []}
            if kind == "http"
            else {"type": "websocket.accept"}
        )

    told: list[dict] = []

    async def send(message: dict) -> None:
        told.append(message)

    async def receive() -> dict:
        return {"type": "websocket.connect"}

    values = {"host": "127.0.0.1:4200"} | headers
    scope = {
        "type": kind,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "method": method,
        "headers": [
            (name.encode(), value.encode())
            for name, given in values.items()
            for value in (given if isinstance(given, list) else [given])
        ],
    }
    asyncio.run(AllowedRequests(server, URL, hosts, frozenset({URL}), PASSWORD)(scope, receive, send))
    return told


def status(*arguments: str, **more: object) -> int:
    return sent(*arguments, **more)[0]["status"]


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:4200", True),
        ("localhost:4200", True),
        ("LOCALHOST", True),
        ("[::1]:4200", True),
        ("127.0.0.1:8080", True),
        ("evil.example", False),
        ("evil.example:4200", False),
        ("localhost.evil.example", False),
        ("", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1:4200:80", False),
        ("127.0.0.1@evil.example", False),
        ("0.0.0.0:4200", False),
    ],
)
def test_only_own_names_are_answered(host: str, answered: bool):
    assert status(host=host) == (204 if answered else 421)
    assert (sent(kind="websocket", host=host)[0]["type"] == "websocket.accept") is answered


def test_two_names_at_once_or_none_are_refused():
    assert status(host=["127.0.0.1:4200", "evil.example"]) == 421
    assert status(host=[]) == 421


def test_the_operator_names_more():
    hosts = frozenset({"lab.example", "other.example:8000"})
    told = {
        host: status(hosts=hosts, host=host)
        for host in ("lab.example", "Lab.Example:4200", "other.example:8000", "other.example:4200", "example")
    }
    assert [host for host, code in told.items() if code == 204] == [
        "lab.example",
        "Lab.Example:4200",
        "other.example:8000",
    ]


@pytest.mark.parametrize(
    ("origin", "opens"),
    [
        (URL, True),
        ([], True),
        ("http://evil.example", False),
        ("null", False),
        ("http://127.0.0.1:8000", False),
    ],
)
def test_a_socket_is_for_own_pages_and_programs(origin: str | list, opens: bool):
    assert (sent(kind="websocket", origin=origin)[0]["type"] == "websocket.accept") is opens


@pytest.mark.parametrize("path", ["/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"])
def test_what_describes_the_api_wants_the_password(path: str):
    assert status(path) == status(path, authorization="Basic cGFpcmxpbmU6d3Jvbmc=") == 401
    assert status(path, authorization=BASIC) == 204


def test_pages_have_one_name():
    """What a page keeps belongs to its name."""
    (start, _) = sent("/runs", host="localhost:4200", accept="text/html,*/*")
    assert (start["status"], dict(start["headers"])[b"location"]) == (307, f"{URL}/runs".encode())
    assert (
        status("/runs", accept="text/html")
        == status("/api/flows/", host="localhost:4200", accept="text/html")
        == 204
    )


def test_the_login_page_runs_its_own_script_alone_and_is_not_kept():
    start, body = sent("/enter")
    headers = dict(start["headers"])
    (script,) = re.findall(rb"<script>(.*?)</script>", body["body"], re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script).digest()) in headers[b"content-security-policy"]
    assert headers[b"content-security-policy"].startswith(
        b"default-src 'none'; connect-src 'self'; frame-ancestors 'none'"
    )
    assert (headers[b"cache-control"], headers[b"referrer-policy"]) == (b"no-store", b"no-referrer")
    assert len(body["body"]) == int(headers[b"content-length"])


def test_no_other_page_lays_an_answer_under_its_own():
    assert (b"x-frame-options", b"SAMEORIGIN") in sent("/")[0]["headers"]
