"""Memory of a program and all processes below it, read from /proc while it runs."""

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05


@dataclass(slots=True)
class Usage:
    """What a process tree used. Pages that forked processes share count once per process, so the sums are upper bounds."""

    output: str  # what the program printed on stdout
    peak_rss_mb: float = 0.0  # all resident pages, those of memory-mapped files included
    peak_anon_mb: float = 0.0  # without pages of files, which the kernel takes back when it needs them


def children_of(pid: int) -> list[int]:
    """Return the process ids of a process's children, none of one that has ended."""
    try:
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (OSError, ValueError):
        return []


def _resident_kb(pid: int) -> tuple[int, int]:
    """Resident and anonymous kB of a process and all below it; a process that has just ended counts nothing."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        rss, anon = (int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon"))
    except (OSError, KeyError, ValueError):
        rss = anon = 0
    for child in children_of(pid):
        below = _resident_kb(child)
        rss, anon = rss + below[0], anon + below[1]
    return rss, anon


def run_measured(command: list[str], environment: dict[str, str], cwd: Path) -> Usage:
    """Run ``command`` to its end. Raises ``RuntimeError`` with the end of its stderr if it fails."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    usage, ended = Usage(""), threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            rss, anon = _resident_kb(process.pid)
            usage.peak_rss_mb = max(usage.peak_rss_mb, rss / 1024)
            usage.peak_anon_mb = max(usage.peak_anon_mb, anon / 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        usage.output, errors = process.communicate()
    finally:
        ended.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors[-2000:]}")
    return usage
