"""Debian's Chromium without a window, driven over its DevTools socket: open a page, wait for text, take a picture."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

from tests.waiting import wait_until

SECONDS_FOR_A_PAGE = 240
LEFT = ("Inspected target navigated or closed", "Execution context was destroyed.")


class PageLeft(AssertionError):
    """The page was left for another one before it answered."""


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.number = socket, 0
        self.call("Page.enable")

    def call(self, method: str, **params: object) -> dict:
        """A DevTools command and its result."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            answer = json.loads(self.socket.recv(timeout=SECONDS_FOR_A_PAGE))
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise (PageLeft if answer["error"]["message"] in LEFT else AssertionError)(answer)
                return answer["result"]

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def leave(self) -> None:
        """Show nothing: a page of the UI that is only open takes half a core without a graphics card."""
        self.open("about:blank")

    def evaluate(self, script: str) -> object:
        """The value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)[
            "result"
        ].get("value")

    def look(self, script: str) -> object:
        """The value of an expression that changes nothing: asked again where the page was just left for another one."""
        deadline = time.monotonic() + SECONDS_FOR_A_PAGE
        while True:
            try:
                return self.evaluate(script)
            except PageLeft:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def text(self) -> str:
        """What a person can read on the page, values of fields included."""
        return str(
            self.look(
                "document.body ? document.body.innerText + '\\n' + [...document.querySelectorAll("
                "'input,textarea')].map(field => field.value).join('\\n') : ''"
            )
        )

    def wait_for(self, *texts: str, seconds: float = SECONDS_FOR_A_PAGE) -> str:
        """The page's text once all ``texts`` are on it (whatever their case). Fails with what was there instead."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            seen = self.text()
            if all(text.lower() in seen.lower() for text in texts):
                return seen
            time.sleep(0.5)
        missing = [text for text in texts if text.lower() not in seen.lower()]
        raise AssertionError(f"{missing} did not appear; the page says:\n{seen[:3000]}")

    def click(self, label: str) -> None:
        """Press the button that says ``label``, once it is there."""
        self._once(
            f"[...document.querySelectorAll('button')].find(button => button.innerText.trim() === '{label}' "
            "&& !button.disabled)",
            "element.click()",
            f"a button {label}",
        )

    def click_until(self, label: str, *texts: str) -> str:
        """Press the button until ``texts`` are on the page: one that was just drawn may not listen yet."""
        deadline = time.monotonic() + SECONDS_FOR_A_PAGE
        while True:
            self.click(label)
            try:
                return self.wait_for(*texts, seconds=15)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def fill(self, selector: str, text: str, number: int = 0) -> None:
        """Give a field its value as typing or choosing would, once it is there. ``number``: which of those that fit."""
        self._once(
            f"document.querySelectorAll('{selector}')[{number}]",
            "Object.getOwnPropertyDescriptor(Object.getPrototypeOf(element), 'value').set.call(element, "
            f"{json.dumps(text)}); for (const kind of ['input', 'change']) element.dispatchEvent(new Event(kind, "
            "{bubbles: true}))",
            selector,
        )

    def submit(self, dialog: str) -> None:
        """Press the dialog's Submit until it is gone: a form hears of what was typed a moment later and refuses till
        then."""
        deadline = time.monotonic() + SECONDS_FOR_A_PAGE
        while self.look(f"document.querySelector('{dialog}') !== null"):
            assert time.monotonic() < deadline, f"{dialog} does not go:\n{self.text()[-3000:]}"
            self.evaluate(
                f"[...document.querySelectorAll('{dialog} button')].find(button => button.innerText.trim() === "
                "'Submit')?.click()"
            )
            time.sleep(1)

    def _once(self, find: str, do: str, what: str) -> None:
        deadline = time.monotonic() + SECONDS_FOR_A_PAGE
        while time.monotonic() < deadline:
            if self.evaluate(
                f"(() => {{ const element = {find}; if (!element) return false; {do}; return true }})()"
            ):
                return
            time.sleep(0.2)
        raise AssertionError(f"{what} is not on the page:\n{self.text()[:3000]}")

    def picture(self, path: Path) -> Path:
        """A screenshot."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path


@contextlib.contextmanager
def browser(folder: Path, draws_timeline: bool = False) -> Iterator[Page]:
    """A tab of a fresh browser whose profile lives in ``folder``.

    Without a graphics card a run's timeline is drawn by the cores that the server and the runs need, so it is left out
    where no picture is kept. ``nice`` is no way out: to root the browser gives its threads priorities of its own, 27 of
    them -8, and where it may not, it drew one frame in 6 s beside others.
    """
    program = shutil.which("chromium")
    assert program, "chromium is not installed: apt-get install chromium"
    argv = [
        program,
        *([] if draws_timeline else ["--disable-webgl"]),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--force-prefers-reduced-motion",
        "--disable-background-networking",
        "--remote-debugging-port=0",
        "--window-size=1400,1600",
        f"--user-data-dir={folder}",
        "about:blank",
    ]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            port = _port(folder / "DevToolsActivePort", process)
            address = wait_until(lambda: _tab(port), "a tab", of=process)
            # No pings of its own: a browser that is busy for their 20 s is none that has died.
            with connect(
                address, max_size=1 << 26, ping_interval=None, open_timeout=SECONDS_FOR_A_PAGE
            ) as socket:
                yield Page(socket)
        finally:
            process.terminate()


def _tab(port: int) -> str:
    """Where the socket of the first tab is; nothing while there is no tab."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=SECONDS_FOR_A_PAGE) as answer:
        return next((tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page"), "")


def _port(file: Path, process: subprocess.Popen) -> int:
    deadline = time.monotonic() + SECONDS_FOR_A_PAGE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            number, _ = file.read_text().splitlines()  # both lines are there
            return int(number)
        time.sleep(0.2)
    raise AssertionError(f"chromium did not start (exit code {process.poll()})")
