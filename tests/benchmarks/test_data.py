"""The peers of the data benchmark do the same work: the same ids and labels for the same rows."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.data import write_rows
from benchmarks.data_peers import IGNORED, Work, pairline, per_row, readers, run_timed, trl
from benchmarks.process_tree import run_measured
from tests.tiny_models import make_tokenizer

NUM_ROWS = 40


@pytest.fixture
def work(tmp_path) -> Work:
    before = "\n\nHuman: a {}?\n\nAssistant: b\n\nHuman: the sea  é?\n\nAssistant: "
    hh = [
        {"chosen": f"{before.format(i)}Yes, {'sky ' * 9 * i}.", "rejected": f"{before.format(i)}{'No ' * 9}"}
        for i in range(7)
    ]
    odd = {"chosen": "\n\nHuman: a?\n\nAssistant: b", "rejected": "\n\nHuman: c?\n\nAssistant: b"}
    (tmp_path / "real.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [odd, *hh]))
    write_rows(tmp_path / "real.jsonl", tmp_path / "rows.jsonl", NUM_ROWS)
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "out").mkdir()
    return Work(
        tmp_path / "rows.jsonl", tmp_path / "tokenizer", tmp_path / "out", max_length_tokens=90, num_workers=1
    )


def _sides(ids, trained):
    return tuple(ids), tuple(trained)


def _ours(work):
    pairs = [dataset[i] for dataset in pairline(work)() for i in range(len(dataset))]
    return sorted(
        (
            _sides(p.chosen_ids.tolist(), p.chosen_trained.tolist()),
            _sides(p.rejected_ids.tolist(), p.rejected_trained.tolist()),
        )
        for p in pairs
    )


def test_the_numbered_rows_differ_and_leave_out_what_is_no_pair(work):
    rows = [json.loads(line) for line in work.rows.read_text().splitlines()]
    assert len({json.dumps(row) for row in rows}) == len(rows) == NUM_ROWS
    assert rows[9]["prompt"][0] == {"role": "user", "content": "[9] a 2?"}


def test_ours_are_the_ids_and_labels_of_the_per_row_mapping(work):
    ours = _ours(work)
    theirs = sorted(
        tuple(
            _sides(row[f"{side}_input_ids"], [label != IGNORED for label in row[f"{side}_labels"]])
            for side in ("chosen", "rejected")
        )
        for row in per_row(work)()[0]
    )
    assert ours == theirs
    assert len(ours) == NUM_ROWS
    assert any(len(ids) == 90 for pair in ours for ids, _ in pair), "no row is long enough to be cut"


def test_ours_are_the_ids_of_trls_preparation(work):
    whole = Work(work.rows, work.tokenizer, work.folder, max_length_tokens=1000, num_workers=1)
    theirs = sorted(
        tuple(
            _sides(
                row["prompt_ids"] + row[f"{side}_ids"],
                [False] * len(row["prompt_ids"]) + [True] * len(row[f"{side}_ids"]),
            )
            for side in ("chosen", "rejected")
        )
        for row in trl(whole)()[0]
    )
    assert _ours(whole) == theirs


def test_readers_see_every_row(work):
    assert run_timed("pairline", work)["rows"] == sum(map(len, readers(work)())) == NUM_ROWS


def test_memory_counts_children_and_leaves_mapped_files_out_of_the_anonymous():
    script = (
        "import mmap, os, subprocess, sys, tempfile, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; x = b\"1\" * (60 << 20); time.sleep(1)'])\n"
        "file = tempfile.TemporaryFile(); [file.write(b'1' * (1 << 20)) for _ in range(80)]; file.flush()\n"
        "pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); \n"
        "sum(pages[i] for i in range(0, 80 << 20, 4096))\n"
        "child.wait(); print('done')"
    )
    usage = run_measured([sys.executable, "-c", script], {}, Path.cwd())
    assert usage.output == "done\n"
    assert 60 < usage.peak_anon_mb < 120
    assert 140 < usage.peak_rss_mb < 220
    with pytest.raises(RuntimeError, match="ended with 3"):
        run_measured([sys.executable, "-c", "import sys; sys.exit(3)"], {}, Path.cwd())
