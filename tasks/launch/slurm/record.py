"""What a job's starts have left in the record of its submission: when, where, which ranks, how each ended.

    <own folder of the job>/slurm/attempt              name of the newest start; an older one ends when it sees it
                                  <key>.log            what the job prints, all starts of a submission in one file
                                  <key>.<n>/           a start: ``started``, ``exit``, ``refused``, by the batch script
                                  <key>.<n>/ranks/     ``rank-*.json``, by ``dpo_core.in_slurm``
                                  share-<i>-of-<n>/    the same of a share, for a step in shares
                                  secret-<NAME>        of a step that is given one, while its job lasts

Written by the batch script and ``dpo_core.in_slurm``, so that an end is told without accounting, and without Slurm's memory.
"""

import contextlib
import itertools
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.errors import PairlineError, StoreError
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.store import write_bytes
from tasks.launch.own_folder import make_own_folder, own_folder
from tasks.launch.slurm.names import share_folder

LARGEST_BYTES, MAX_RANKS = 1 << 16, 65_536  # of what a container may write; a step's word, as in its folder
OVER_FILE = "over"  # dpo_core.in_slurm's
SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_READINGS = 0.5, 2.0
SECONDS_FOR_RANKS_TO_END = 10.0  # they look every 2 s
SECONDS_WITHOUT_A_SIGN = 60.0  # ranks give one every 2 s; a file system may show it late


@dataclass(frozen=True, slots=True)
class RankEnd:
    """A rank, and how it ended. ``code`` is None while it runs, or where it could not say; negative: a signal. ``world``: of
    how many it is one, 0 where that is not known."""

    rank: int
    host: str
    code: int | None = None
    time: float = 0.0
    world: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a submission. ``exit_code`` is None while it runs, or where its node was lost."""

    number: int
    job_id: str = ""
    nodes: str = ""
    began: float = 0.0  # Unix seconds, by its node's clock
    ended: float = 0.0
    last_sign: float = 0.0
    exit_code: int | None = None
    refused: str = ""  # why it could not begin
    from_step: int | None = None  # of the newest checkpoint when it began
    ranks: tuple[RankEnd, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether all its ranks have said that they ended well. srun may say otherwise, of a child of theirs that was
        killed for memory."""
        if not self.ranks or any(rank.code != 0 for rank in self.ranks):
            return False
        return self.exit_code == 0 or len(self.ranks) == self.ranks[0].world

    def seconds(self, now: float) -> float:
        """Return how long it ran, or runs: an end that nobody wrote down was at its last sign of life."""
        if self.exit_code is not None:
            return max(0.0, self.ended - self.began)
        silent = now - self.last_sign > SECONDS_WITHOUT_A_SIGN
        return max(0.0, (self.last_sign if silent else now) - self.began)


def record_folder(folder: Path, make: bool = False) -> Path:
    """Return where the starts of the job in ``folder`` are written down."""
    if not make:
        return own_folder(folder) / "slurm"
    place = make_own_folder(folder) / "slurm"
    place.mkdir(exist_ok=True)
    return place


def starts_of(record: Path, key: str) -> list[Start]:
    """Return the starts of a submission, in their order."""
    numbers = [int(place.suffix[1:]) for place in record.glob(f"{key}.*") if place.suffix[1:].isdigit()]
    return [_start(record / f"{key}.{number}", number) for number in sorted(numbers)]


class StartsSeen:
    """The starts of a submission: all of their files are read every two seconds, as ranks give a sign, and at an end."""

    def __init__(self, record: Path, key: str) -> None:
        self.record, self.key = record, key
        self._starts: list[Start] = []
        self._read = -SECONDS_BETWEEN_READINGS  # monotonic

    def look(self, anew: bool = False) -> list[Start]:
        """Return them in their order."""
        if anew or time.monotonic() - self._read >= SECONDS_BETWEEN_READINGS or self._newest_has_ended():
            self._read = time.monotonic()
            self._starts = starts_of(self.record, self.key)
        return self._starts

    def _newest_has_ended(self) -> bool:
        last = self._starts[-1] if self._starts else None
        if last is None or last.exit_code is not None:
            return False
        return (self.record / f"{self.key}.{last.number}" / "exit").exists()


def _start(place: Path, number: int) -> Start:
    began, job_id, nodes, kept = (*_words(place / "started"), "", "", "", "")[:4]
    code, ended = (*_words(place / "exit"), "", "")[:2]
    files = sorted(itertools.islice(place.glob("ranks/rank-*.json"), MAX_RANKS))
    return Start(
        number,
        job_id,
        nodes,
        began=_number(began),
        ended=_number(ended),
        last_sign=max(map(_modified, [place, place / "started", *files])),
        exit_code=_whole(code),
        refused=text_of(place / "refused").strip()[:2000],
        from_step=_whole(kept.removeprefix("step-")),
        ranks=tuple(sorted(filter(None, map(_rank, files)), key=lambda rank: rank.rank)),
    )


def _rank(file: Path) -> RankEnd | None:
    with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
        written = json.loads(text_of(file))
        code = written.get("code")
        return RankEnd(
            int(written["rank"]),
            str(written["host"])[:256],
            None if code is None else int(code),
            float(written.get("time", 0)),
            int(written.get("world", 0)),
        )
    return None


def text_of(file: Path) -> str:
    """Return what a small file of the record says; empty if it is not there, or no file."""
    try:
        return read_regular(file, LARGEST_BYTES).decode(errors="replace")
    except (OSError, StoreError):
        return ""


def _words(file: Path) -> list[str]:
    return text_of(file).split()


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _modified(file: Path) -> float:
    try:
        return file.lstat().st_mtime
    except OSError:
        return 0.0


def running_seconds(starts: list[Start]) -> float:
    """Return how long a submission has run, over all its starts; what it waited in the queue does not count."""
    now = time.time()
    return sum(start.seconds(now) for start in starts if start.began)


@dataclass
class SuspendedTime:
    """For how long a job stood still while it was watched, by a preemption or an administrator. No running time."""

    seconds: float = 0.0
    _since: float | None = None  # monotonic

    def look(self, is_suspended: bool) -> None:
        """Take what was seen."""
        now = time.monotonic()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now if is_suspended else None


def fence(record: Path, key: str, seconds: int = 0) -> None:
    """Tell the ranks of a submission whose run is over to end: one on a node that Slurm has lost hears of nothing else.

    They are killed, or asked to stop and killed after so many seconds; what they were told first counts.
    """
    for start in starts_of(record, key):
        if any(rank.code is None for rank in start.ranks) or start.exit_code is None:
            over = record / f"{key}.{start.number}" / OVER_FILE
            with contextlib.suppress(OSError, PairlineError):
                if seconds and not over.exists():
                    write_bytes(over, f"{seconds}\n".encode())
                over.touch()


def wait_for_ranks(record: Path, key: str, seconds: float) -> None:
    """Wait until every rank of a submission has said how it ended, or can say no more."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(
        rank.code is None for start in starts_of(record, key) for rank in start.ranks
    ):
        time.sleep(SECONDS_BETWEEN_LOOKS)


def forget_earlier(record: Path, kept: str = "") -> None:
    """Remove what earlier submissions have left, but the newest start, of which something may still be at work, shares of
    a pass that is not complete, and the file ``kept``."""
    newest = text_of(record / "attempt").strip()
    shares = {place.name for place in record.glob(share_folder(record, "*", "*").name)}
    for place in record.iterdir():
        if place.name not in ("attempt", newest, kept, *shares):
            with contextlib.suppress(OSError):
                shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
