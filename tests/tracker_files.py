"""Reads what trackers wrote. W&B's offline file holds protobuf records in LevelDB's block format, which its own Python no
longer reads."""

import json
from collections.abc import Iterator
from pathlib import Path

BLOCK, FILE_HEADER, RECORD_HEADER = 32_768, 7, 7  # bytes
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def tensorboard_steps(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value) of all event files below a training's folder, in the order written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (logs,) = {path.parent for path in folder.glob("tracking/*/events.*")}
    events = EventAccumulator(str(logs), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def records(path: Path) -> Iterator[bytes]:
    """The payloads of a ``.wandb`` file; a part that was cut off ends it."""
    content, at, part = path.read_bytes(), FILE_HEADER, b""
    assert content[:4] == b":W&B"
    while at + RECORD_HEADER <= len(content):
        if BLOCK - at % BLOCK < RECORD_HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part += content[at + RECORD_HEADER : at + RECORD_HEADER + length]
        at += RECORD_HEADER + length
        if kind in (FULL, LAST):
            yield part
            part = b""


def history(folder: Path) -> list[dict[str, float]]:
    """The steps logged in the one run below ``folder``, in order, with their metrics and ``step``."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    steps = []
    for payload in records(path):
        record = Record.FromString(payload)
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            steps.append({**values, "step": values["_step"]})
    return steps
