"""The logs of a step's shares as lines of one log: each once, with its share before it, whoever reads on and when.

Where a log has been read to is said by the saved position (``log_position``) while its job is followed, which counts for
more, and afterwards by a file beside the log, since the position is then that of other jobs.
"""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from dpo_core.contract.progress import carries_event
from tasks.launch.launcher import OnLine
from tasks.launch.log_position import go_back_to_position, save_position, saved_times
from tasks.launch.slurm.job_log import JobLog
from tasks.launch.slurm.names import share_of
from tasks.launch.slurm.record import record_folder, text_of

READ = ".read"  # beside a log: bytes of it whose lines have been passed on


def of_share(index: int, on_line: OnLine) -> OnLine:
    """Return what takes a share's lines without its progress, which says nothing of the step's."""

    def take(line: str) -> None:
        if not carries_event(line):
            on_line(f"[share {index}] {line}")

    return take


def read_to(record: Path, key: str, saved: str | None = None) -> int:
    """Return how far the log of a share has been passed on. ``saved``: its place in the saved position."""
    said = text_of(record / f"{key}{READ}").strip() if saved is None else saved
    return int(said) if said.isascii() and said.isdigit() else 0


def mark_read(record: Path, key: str, offset: int) -> None:
    """Write down how far a log that nobody follows any more has been passed on."""
    with contextlib.suppress(OSError):
        (record / f"{key}{READ}").write_text(f"{offset}\n")


def pass_rests_on(
    folder: Path, unread: Mapping[str, str | None], followed: Mapping[str, str], on_line: OnLine
) -> None:
    """Pass on what ended jobs, shares or others, have printed and nobody has read. ``unread``: their places in the saved
    position; ``followed``: the places of others, which are followed.

    The position counts for more than what is marked. It is saved before the first line: killed anywhere in here, the next
    start cuts the log there and passes the same lines on. And after the last: who attaches next cuts the log, too.
    """
    record = record_folder(folder)
    places = {key: read_to(record, key, saved) for key, saved in unread.items()}
    save_position(folder, {**followed, **{key: str(place) for key, place in places.items()}})
    ends = {key: _pass_rest_on(record, key, place, on_line) for key, place in places.items()}
    save_position(folder, {**followed, **{key: str(place) for key, place in ends.items()}})
    for key, place in ends.items():
        mark_read(record, key, place)


def _pass_rest_on(record: Path, key: str, offset: int, on_line: OnLine) -> int:
    share = share_of(key)
    labelled = share is None and any(record.glob(f"{key}.*/ranks/rank-1.json"))
    log = JobLog(record / f"{key}.log", offset, labelled)
    log.pass_on(of_share(share[0], on_line) if share else on_line, to_the_end=True)
    return log.offset


def read_ended_shares(folder: Path, keys: Iterable[str], on_line: OnLine) -> None:
    """Pass on the rest of the logs of shares that have been ended, before another job of the step is followed. ``keys``: of
    such as may not stand in the saved position."""
    saved = go_back_to_position(folder, saved_times(folder))
    unread: dict[str, str | None] = dict.fromkeys(keys)
    unread |= {key: place for key, place in saved.items() if share_of(key)}
    pass_rests_on(folder, unread, {key: saved[key] for key in saved if key not in unread}, on_line)
