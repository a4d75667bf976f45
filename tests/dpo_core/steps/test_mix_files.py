"""The same rows in every kind of file, in a folder and in a Hub repository: one mixture."""

import gzip
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_core.contract.refs import ResolvedSource
from tests.dpo_core.steps.test_mix import _job, _row, _run, _source
from tests.hub_server import serve


def _rows():
    return [_row(i, system=[f"Be {i}."], constraints=[{"name": "no_commas"}]) for i in range(9)]


def test_the_same_rows_give_the_same_fingerprint_in_every_kind_of_source(tmp_path):
    rows = _rows()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = pa.Table.from_pylist(rows)
    (tmp_path / "rows.jsonl").write_bytes(lines)
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines[:99]) + gzip.compress(lines[99:]))
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    with pa.ipc.new_file(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    (tmp_path / "folder").mkdir()
    pq.write_table(table[:4], tmp_path / "folder" / "a.parquet")
    (tmp_path / "folder" / "b.jsonl").write_bytes(b"".join(lines.splitlines(keepends=True)[4:]))
    (tmp_path / "repo" / "data").mkdir(parents=True)
    pq.write_table(table, tmp_path / "repo" / "data" / "train-00000-of-00001.parquet")
    names = ("rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet", "rows.arrow", "folder")
    sources = [ResolvedSource(label=name, path=tmp_path / name, content=name) for name in names]
    sources.append(ResolvedSource(label="org/set", hub_id=str(tmp_path / "repo"), content="repo"))
    made = [
        _run(_job(tmp_path, source, held_out="3", out=f"of-{number}"))[0]
        for number, source in enumerate(sources)
    ]
    assert {result.per_source[0].kept for result in made} == {9}
    assert len({result.data.fingerprint for result in made}) == 1


# Another process, as the Hub's library reads at its import which Hub there is.
FETCH_AND_MIX = """
import sys
from pathlib import Path
from dpo_core.contract.data_jobs import FetchJob
from dpo_core.contract.refs import ResolvedSource
from tests.dpo_core.steps.test_mix import _job, _run
from tests.tiny_stage import run_here

folder = Path(sys.argv[1])
source = ResolvedSource(label="org/set", hub_id="org/set", content="the Hub's")
run_here(FetchJob(source=source, cache_dir=folder / "cache").at(folder / "fetch"))
result = _run(_job(folder, source, held_out="3", out="of-the-hub"))[0]
print(result.data.fingerprint, result.per_source[0].kept)
"""


@pytest.mark.integration
def test_rows_from_a_hub_give_the_fingerprint_of_a_file(tmp_path):
    rows, files = _rows(), {}
    for number, part in enumerate((rows[:4], rows[4:])):
        with pa.BufferOutputStream() as stream:
            pq.write_table(pa.Table.from_pylist(part), stream)
            files[f"data/train-0000{number}-of-00002.parquet"] = stream.getvalue().to_pybytes()
    local = _run(_job(tmp_path, _source(tmp_path, rows), held_out="3"))[0]
    with serve() as hub:
        hub.add_repo("org/set", files, kind="dataset")
        home = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
        told = subprocess.run(
            [sys.executable, "-c", FETCH_AND_MIX, tmp_path],
            env={**os.environ, **home, "HF_HUB_OFFLINE": "0"},
            text=True,
            capture_output=True,
        )
    assert told.stdout.splitlines()[-1:] == [f"{local.data.fingerprint} 9"], told.stderr[-3000:]
