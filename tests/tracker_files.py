"""Reads what trackers wrote. W&B's offline file holds protobuf records in LevelDB's block format, which its own Python no
longer reads."""

import contextlib
import csv
import json
import os
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def _mlflow_run(folder: Path) -> tuple[Any, Any]:
    """MLflow's own client, and the one run below a training's folder."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # as who looks at them sets it
    from mlflow import MlflowClient

    client = MlflowClient((folder / "tracking/mlruns").as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def mlflow_steps(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value) of the one run below a training's folder, as MLflow's own client reads them."""
    client, run = _mlflow_run(folder)
    assert run.info.status == "FINISHED"
    return {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def mlflow_words(folder: Path) -> dict[str, Any]:
    """What MLflow's one run is called, with its group, tags and notes."""
    _, run = _mlflow_run(folder)
    tags = run.data.tags
    return {
        "name": run.info.run_name,
        "group": tags["group"],
        "tags": sorted(name for name, value in tags.items() if value == "true"),
        "notes": tags["mlflow.note.content"],
    }


def trackio_words(folder: Path) -> dict[str, Any]:
    """What Trackio's one run is called, with its group, tags and notes."""
    (database,) = (folder / "tracking/trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        ((name, text),) = connection.execute("SELECT run_name, config FROM configs").fetchall()
    config = json.loads(text)
    return {"name": name, "group": config["_Group"], "tags": config["tags"], "notes": config["notes"]}


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


def wandb_words(folder: Path) -> dict[str, Any]:
    """What W&B's one offline run below ``folder`` is called, with its group, tags and notes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = (Record.FromString(payload) for payload in records(path))
    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    return {"name": run.display_name, "group": run.run_group, "tags": list(run.tags), "notes": run.notes}


def swanlab_steps(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of SwanLab's one offline run below ``folder``, by its own reader."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (path,) = folder.glob("swanlab/run-*/*.swanlab")
    reader = DataStoreReader()
    reader.open(path)
    scalars = [
        record.scalar for payload in reader if (record := Record.FromString(payload)).HasField("scalar")
    ]
    reader.close()
    return [(each.step, each.value.number) for each in scalars if each.key == "loss"]


def comet_steps(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of Comet's one offline experiment below ``folder``, out of the archive that is uploaded."""
    (path,) = folder.glob("comet/*.zip")
    with zipfile.ZipFile(path) as archive:
        lines = [json.loads(line) for line in archive.read("messages.json").decode().splitlines()]
    metrics = [line["payload"]["metric"] for line in lines if line["type"] == "metric_msg"]
    return [(each["step"], each["metricValue"]) for each in metrics if each["metricName"] == "loss"]


def clearml_steps(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of ClearML's one offline session below ``folder``."""
    (path,) = folder.glob("clearml/offline/*.zip")  # which is made at the end, and is what is sent
    with zipfile.ZipFile(path) as archive:
        events = [
            each for line in archive.read("metrics.jsonl").decode().splitlines() for each in json.loads(line)
        ]
    return [(each["iter"], each["value"]) for each in events if each["metric"] == "loss"]


def dvclive_steps(folder: Path) -> list[tuple[int, float]]:
    """Step and loss below ``folder``, of the table that `dvc plots` shows."""
    with (folder / "dvclive/plots/metrics/loss.tsv").open() as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file, delimiter="\t")]


def aim_steps(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of the one run of Aim's repository in ``folder``."""
    from aim import Repo
    from aim.sdk.index_manager import RepoIndexManager

    repository = Repo(str(folder))
    (name,) = repository.list_all_runs()
    RepoIndexManager.get_index_manager(repository).index(name)  # as `aim up` does by itself
    found = Repo(str(folder)).query_metrics("metric.name == 'loss'").iter_runs()
    (table,) = [metric.dataframe() for run in found for metric in run]
    return sorted(
        (int(step), float(value)) for step, value in zip(table["step"], table["value"], strict=True)
    )
