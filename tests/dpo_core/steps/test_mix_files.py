"""The same rows in every kind of file, in a folder and in a Hub repository: one mixture."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq

from dpo_core.contract.refs import ResolvedSource
from tests.dpo_core.steps.test_mix import _job, _row, _run


def test_the_same_rows_give_the_same_fingerprint_in_every_kind_of_source(tmp_path):
    rows = [_row(i, system=[f"Be {i}."], constraints=[{"name": "no_commas"}]) for i in range(9)]
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
