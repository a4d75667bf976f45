"""Parts of a checkpoint of many ranks: read by one with few of them open, however few files it may open."""

import json
import os
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from dpo_core.contract.errors import StoreError
from dpo_core.model import few_files
from dpo_core.model.tensor_slices import PARTS, TensorSlices, open_slices

RANKS = 200


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def written_by(ranks: int, folder) -> list:
    paths = []
    for rank in range(ranks):
        paths.append(folder / f"{rank}.safetensors")
        parts = {PARTS: json.dumps({"matrix": [2 * rank, [ranks, 2]]})}
        save_file({"matrix": torch.tensor([2.0 * rank, 2.0 * rank + 1])}, paths[-1], metadata=parts)
    return paths


def test_a_process_that_may_open_few_files_reads_the_parts_of_many_ranks(tmp_path):
    paths, before = written_by(RANKS, tmp_path), open_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + few_files.MOST_OPEN + 8, hard))
    try:
        with open_slices(paths, ["matrix"]) as slices:
            everything = slices.read("matrix")
            assert open_files() - before <= few_files.MOST_OPEN
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert everything.equal(torch.arange(2.0 * RANKS))
    assert open_files() == before


def test_a_file_that_one_thread_reads_is_not_closed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(few_files, "MOST_OPEN", 1)
    paths, before = written_by(8, tmp_path), open_files()
    with open_slices(paths) as slices, ThreadPoolExecutor(4) as threads:
        ranges = [(first, first + 5) for first in range(11)] * 20
        found = list(threads.map(lambda one: slices.read("matrix", *one), ranges))
        assert open_files() - before <= 1
    assert [values.tolist() for values in found] == [list(map(float, range(*one))) for one in ranges]
    assert open_files() == before


def test_what_cannot_be_read_leaves_no_file_open(tmp_path):
    paths, before = written_by(3, tmp_path), open_files()
    for wrong in (paths[:2], [*paths, tmp_path / "absent"]):
        with pytest.raises(StoreError):
            TensorSlices(wrong)
        assert open_files() == before
