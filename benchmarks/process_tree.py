"""Memory of a program and all processes below it, read from /proc while it runs."""

import contextlib
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


def with_all_below(pid: int) -> list[int]:
    """Return the process ids of a process and of all below it; of one that has ended its own alone."""
    found = [pid]
    with contextlib.suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += with_all_below(int(child))
    return found


def resident_kb(pid: int) -> tuple[int, int]:
    """Return resident and anonymous kB of a process; one that has just ended counts nothing."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]), int(fields["RssAnon"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0, 0


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
            rss, anon = map(sum, zip(*map(resident_kb, with_all_below(process.pid)), strict=True))
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
