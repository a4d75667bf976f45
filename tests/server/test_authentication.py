"""Who gets in and who does not: a page of another origin, another user of the machine, whoever asks without the password,
and the person whose server it is. The last test starts a server as it was before, on which the page's attack succeeds."""

import base64
import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flows.serve.run_processes import CLIENT_VARIABLE, SERVER_VARIABLE, environment_of
from flows.serve.settings import POOL, PROJECT
from flows.serve.up import wait_until_healthy
from tests.server.browser import Page, browser
from tests.server.conftest import Installation, log_in, wait_until, without_training
from tests.tiny_stage import tiny_values

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
PLANTED, BLOCK, FLOW = "s3cret-of-a-block", "planted-for-a-page", "of-another-page"
# Of Prefect's own protocol: a socket that sends, one that hears, and the worker's.
SOCKETS = (
    "events/in",
    "events/out",
    "logs/out",
    "task_runs/subscriptions/scheduled",
    f"work_pools/{POOL}/workers/connect",
)
# What a page can try: with a readable answer (CORS), blindly (no-cors; a body without a type counts as JSON), by a socket.
ATTACK = """(async () => {
  const got = {}, json = {"content-type": "application/json"};
  const ask = async (path, body) => {
    const answer = await fetch("%(api)s" + path, {method: "POST", headers: json, body: JSON.stringify(body)});
    if (!answer.ok) throw answer.status;
    return await answer.json();
  };
  const attempt = async (what, does) => { try { got[what] = await does() } catch { got[what] = "refused" } };
  await attempt("block", async () => JSON.stringify(await ask("/block_documents/filter", {include_secrets: true})));
  await attempt("deployment", async () => {
    const flow = await ask("/flows/", {name: "%(flow)s"});
    return (await ask("/deployments/", {name: "it", flow_id: flow.id, work_pool_name: "%(pool)s", paused: true})).id;
  });
  await attempt("run", async () => (await ask("/deployments/%(deployment)s/create_flow_run", {state: {type: "SCHEDULED",
    state_details: {scheduled_time: "2100-01-01T00:00:00Z"}}})).id);
  await attempt("blind", async () => {
    const body = new Blob([JSON.stringify({name: "%(flow)s-blind"})]);
    await fetch("%(api)s/flows/", {method: "POST", mode: "no-cors", body: body});
    return "sent";
  });
  await attempt("socket", () => new Promise((opened, failed) => {
    const socket = new WebSocket("%(socket)s", ["prefect"]);
    socket.onopen = () => { socket.close(); opened("opened") };
    socket.onerror = failed;
  }));
  return JSON.stringify(got);
})()"""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The address of a page of another origin."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title><p>another page")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture(scope="module", autouse=True)
def planted(installation: Installation) -> Iterator[None]:
    """A secret on the server, and nothing left of what an attack made there."""
    with installation.of_this_server():
        Secret(value=PLANTED).save(BLOCK, overwrite=True)
    yield
    with installation.client() as client:
        for name in flows_of_the_attack(installation):
            client.request("DELETE", f"/flows/{client.read_flow_by_name(name).id}")


def flows_of_the_attack(installation: Installation) -> set[str]:
    with installation.client() as client:
        return {flow.name for flow in client.read_flows(limit=200) if flow.name.startswith(FLOW)}


def attack(installation: Installation, page: Page, elsewhere: str) -> dict[str, str]:
    """What a page of another origin gets, in the browser of the person whose server it is."""
    with installation.client() as client:
        deployment = client.read_deployment_by_name("reap/reap").id
    settings = installation.settings
    page.open(elsewhere)
    page.wait_for("another page")
    socket = f"ws://127.0.0.1:{settings.port}/api/events/out"
    return json.loads(
        str(
            page.evaluate(
                ATTACK
                % {
                    "api": settings.api_url,
                    "flow": FLOW,
                    "pool": POOL,
                    "socket": socket,
                    "deployment": deployment,
                }
            )
        )
    )


def answer(
    installation: Installation, path: str, method: str = "GET", **headers: str
) -> tuple[int, str, dict[str, str]]:
    """What a plain program gets. -> status, text, headers"""
    connection = http.client.HTTPConnection("127.0.0.1", installation.settings.port, timeout=420)
    with contextlib.closing(connection):
        connection.request(
            method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        given = connection.getresponse()
        return (
            given.status,
            given.read().decode(),
            {name.lower(): value for name, value in given.getheaders()},
        )


def basic(password: str) -> str:
    return f"Basic {base64.b64encode(password.encode()).decode()}"


def test_the_link_logs_a_browser_in_and_leaves_no_trace(installation: Installation, page: Page):
    settings = installation.settings
    page.open(f"{settings.ui_url}/deployments")
    page.wait_for("Login")
    page.open(f"{settings.ui_url}/enter#d3Jvbmc6cGFzc3dvcmQ")
    page.wait_for("The server has another password than this link.")
    page.leave()
    log_in(installation, page)
    assert page.look("location.href") == f"{settings.ui_url}/deployments"
    entries = json.dumps(page.call("Page.getNavigationHistory"))
    assert "/deployments" in entries
    assert installation.login_link.rpartition("#")[2] not in entries
    page.open(
        f"http://localhost:{settings.port}/deployments"
    )  # a name whose pages would keep a password of their own
    page.wait_for("nightly")
    assert page.look("location.href") == f"{settings.ui_url}/deployments"
    page.leave()


def test_a_page_of_another_origin_gets_nothing(installation: Installation, page: Page, elsewhere: str):
    log_in(installation, page)
    got = attack(installation, page, elsewhere)
    assert got.pop("blind") == "sent"  # a browser lets it, and no answer is seen
    assert set(got.values()) == {"refused"}, got
    assert not flows_of_the_attack(installation)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}"]
)
def test_a_foreign_preflight_is_refused(installation: Installation, origin: str):
    own = installation.settings.ui_url
    for page, expected in ((origin.format(port=installation.settings.port), (400, None)), (own, (200, own))):
        status, _, headers = answer(
            installation,
            "/api/flows/filter",
            "OPTIONS",
            Origin=page,
            **{"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"},
        )
        assert (status, headers.get("access-control-allow-origin")) == expected


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example:{port}",
        "localhost.evil.example",
        "0.0.0.0:{port}",
        "127.0.0.1@evil.example",
    ],
)
def test_another_name_of_this_machine_gets_nothing(installation: Installation, host: str):
    """An attacker's name that leads to 127.0.0.1 is its page's own origin, to which a browser tells everything."""
    told = {
        "Host": host.format(port=installation.settings.port),
        "Authorization": basic(installation.password),
    }
    for path in ("/", "/enter", "/api/health", "/api/admin/version", "/ui-settings"):
        assert answer(installation, path, **told)[0] == 421
    for host_of_ours in ("127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}"):
        told["Host"] = host_of_ours.format(port=installation.settings.port)
        assert answer(installation, "/api/admin/version", **told)[0] == 200


def test_without_the_password_there_is_health_and_the_pages_files(installation: Installation):
    described = json.loads(
        answer(installation, "/openapi.json", Authorization=basic(installation.password))[1]
    )
    paths = {
        f"/api{path}".replace("/api/api/", "/api/").replace("{", "").replace("}", "")
        for path in described["paths"]
    }
    assert len(paths) > 100
    paths |= {"/openapi.json", "/docs", "/redoc", "/api/openapi.json", "/api/docs", "/api/metrics"}
    assert {path for path in paths if answer(installation, path)[0] != 401} == {"/api/health", "/api/ready"}
    for path in ("/api/health", "/api/flows/filter", "/api/block_documents/filter", "/api/deployments/"):
        assert answer(installation, path, "POST")[0] == 401
    for wrong in ("Basic", "Basic !", basic("pairline:wrong"), basic(""), f"Bearer {installation.password}"):
        assert answer(installation, "/api/admin/version", Authorization=wrong)[0] == 401
    status, _, headers = answer(installation, "/")
    assert status == 200
    assert headers["x-frame-options"] == "SAMEORIGIN"  # nor does another page lay them under its own


@pytest.mark.parametrize("path", SOCKETS)
def test_a_socket_opens_with_the_password_alone(installation: Installation, path: str):
    address = f"ws://127.0.0.1:{installation.settings.port}/api/{path}"

    def opens(password: str | None, **more: object) -> bool:
        try:
            with connect(address, subprotocols=["prefect"], open_timeout=300, **more) as socket:
                socket.send(json.dumps({"type": "auth", "token": password}))
                return json.loads(socket.recv(timeout=300))["type"] == "auth_success"
        except (ConnectionClosed, InvalidStatus):
            return False

    assert opens(installation.password)
    assert opens(installation.password, origin=installation.settings.ui_url)
    assert not opens(None)
    assert not opens("pairline:wrong")
    assert not opens(installation.password, origin="http://evil.example")
    assert not opens(installation.password, additional_headers={"Host": "evil.example"})
    with pytest.raises((ConnectionClosed, InvalidStatus)), connect(address, open_timeout=300) as socket:
        socket.recv(timeout=300)  # as old clients do


def test_another_user_of_the_machine_reads_nothing(installation: Installation):
    """Tried as nobody, where the tests run as root; and by what the files say."""
    home = installation.settings.home
    folder = installation.settings.folder
    for path in (folder, installation.settings.prefect_home):
        assert path.stat().st_mode & 0o777 == 0o700
    for path in (
        folder / "password",
        folder / "server.log",
        installation.settings.prefect_home / "prefect.db",
    ):
        assert path.stat().st_mode & 0o777 == 0o600
    pids = [installation.server.pid(), installation.worker.pid()]
    shown = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
    assert installation.password.encode() not in shown
    if os.geteuid() != 0:
        return
    mode = home.stat().st_mode
    home.chmod(0o755)  # pytest's own protection is not what is tried
    try:
        tried = [
            *(str(folder / name) for name in ("password", "server.log", "prefect/prefect.db", "worker.log")),
            *(f"/proc/{pid}/environ" for pid in pids),
        ]
        script = f"ls {home}; for file in {' '.join(tried)} {folder}/* {folder}/prefect/*; do cat $file && echo READ; done"
        done = subprocess.run(
            ["sh", "-c", script],
            user="nobody",
            group="nogroup",
            extra_groups=[],
            env={},
            cwd="/",
            text=True,
            capture_output=True,
            check=False,
            timeout=60,
        )
    finally:
        home.chmod(mode)
    assert done.stdout.split() == ["serve"], done.stdout
    assert done.stderr.count("Permission denied") >= len(tried), done.stderr


def test_the_server_holds_no_token_and_up_keeps_the_password(installation: Installation):
    server, worker = (environment_of(part.pid()) for part in (installation.server, installation.worker))
    assert "planted" not in server.values()
    assert worker["OPENAI_KEY"] == "planted"  # runs may need it
    assert SERVER_VARIABLE not in worker
    before = installation.server.pid(), installation.worker.pid(), installation.password
    again = installation.pairline("up")
    assert again.returncode == 0, again.stderr
    assert installation.login_link in again.stdout
    assert (installation.server.pid(), installation.worker.pid(), installation.password) == before


@pytest.mark.parametrize("known", ["PAIRLINE_HOME", "URL", "localhost"])
def test_another_terminal_gets_in_unasked(installation: Installation, tmp_path: Path, known: str):
    settings = installation.settings
    name, value = {
        "PAIRLINE_HOME": ("PAIRLINE_HOME", str(settings.home)),
        "URL": ("PREFECT_API_URL", settings.api_url),
        "localhost": ("PREFECT_API_URL", f"http://localhost:{settings.port}/api/"),
    }[known]
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PAIRLINE_"))
    }
    script = (
        "from pathlib import Path\nfrom flows.terminal.server_commands import use_server\n"
        "use_server(Path('.pairline'))\n"
        "from flows.terminal.server_commands import parameters_of_deployment as ask; ask(); import os\n"
        "print(os.environ['PREFECT_API_URL'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
        env=own | {name: value, "PYTHONPATH": str(PROJECT), "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stdout.strip()) == (0, settings.api_url), done.stderr


def start_as_before(installation: Installation) -> None:
    """Server and worker as `pairline up` started them when it made no password."""
    settings = installation.settings
    environment = {
        name: value
        for name, value in (settings.environment() | installation.environment).items()
        if name not in (SERVER_VARIABLE, CLIENT_VARIABLE)
    }
    python = [sys.executable, "-m", "prefect"]
    installation.server.start(
        [*python, "server", "start", "--host", "127.0.0.1", "--port", str(settings.port)],
        environment,
        PROJECT,
    )
    wait_until_healthy(settings, installation.server)
    name = f"{socket.gethostname()}-{settings.port}"  # one of another name would count as another machine's
    installation.worker.start(
        [*python, "worker", "start", "--pool", POOL, "--type", "process", "--name", name],
        environment,
        PROJECT,
    )
    settings.folder.chmod(0o755)
    for path in (settings.prefect_home / "prefect.db", installation.server.log):
        path.chmod(0o644)


def test_an_installation_from_before_is_closed_and_its_runs_go_on(
    installation: Installation, page: Page, elsewhere: str, inputs: Path, prepared: Path
):
    store = without_training(prepared)
    assert installation.pairline("down").returncode == 0
    try:
        start_as_before(installation)
        got = attack(installation, page, elsewhere)
        page.leave()
        assert PLANTED in got["block"]
        assert "refused" not in got.values(), got
        assert flows_of_the_attack(installation) == {FLOW, f"{FLOW}-blind"}
        known = {run.id for run in installation.runs_of("dpo-stage/manual")}
        train = {"num_epochs": 100, "checkpoint_every": 20}  # at work still when the command has started
        run = installation.start("dpo-stage/manual", {"config": tiny_values(inputs, store, train=train)})
        wait_until(
            lambda: any(store.glob("train/*/checkpoints/[!.]*")),
            "a checkpoint",
            lambda: installation.describe(run),
        )
    finally:
        up = installation.pairline("up")
    assert up.returncode == 0, up.stderr
    assert "started without it" in up.stdout
    stopped = re.search(r"runs +(\d+) stopped", up.stdout)
    assert stopped, up.stdout
    assert int(stopped[1]) >= 1  # the attack's own may be among them
    assert answer(installation, "/api/admin/version")[0] == 401
    assert installation.settings.folder.stat().st_mode & 0o777 == 0o700
    assert (installation.settings.prefect_home / "prefect.db").stat().st_mode & 0o777 == 0o600
    wait_until(
        lambda: installation.run(run).state.is_completed(), "its end", lambda: installation.describe(run)
    )
    assert {run.id for run in installation.runs_of("dpo-stage/manual")} == known | {run}
