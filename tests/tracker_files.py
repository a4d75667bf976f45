"""Reads what trackers wrote. W&B's offline file holds protobuf records in LevelDB's block format, which its own Python no
longer reads."""

import contextlib
import json
import os
import sqlite3
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


def mlflow_steps(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value) of the one run below a training's folder, as MLflow's own client reads them."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # as who looks at them sets it
    from mlflow import MlflowClient

    client = MlflowClient((folder / "tracking/mlruns").as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def trackio_steps(folder: Path) -> list[dict[str, float]]:
    """The steps of the one run below a training's folder, in the order written, with their metrics and ``step``."""
    (database,) = (folder / "tracking/trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    return [{**json.loads(metrics), "step": step} for step, metrics in rows]


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
