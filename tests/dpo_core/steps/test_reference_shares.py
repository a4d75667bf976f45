"""Shares of a reference pass, computed by jobs that do not know each other: the values of one process, to the bit."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dpo_core.__main__ import main
from dpo_core.contract.errors import ConfigError, StoreError
from dpo_core.contract.progress import Progress
from dpo_core.contract.results import RESULT_FILE
from dpo_core.data.agreed_rows import AgreedRows, agree, agreed_file, read_agreed
from dpo_core.data.reference_cache import ReferenceCache
from dpo_core.steps.reference import run_share
from tests.dpo_core.steps.test_reference import aligned_bytes, shards
from tests.tiny_stage import TinyStage, make_rows, mix, reference_job, run_here

NUM_SHARES = 3
SMALL = {"rows_per_shard": 4, "tokens_per_batch": 96}


def compute(job, share: int) -> list:
    """Run a share in this process. -> the events of its progress"""
    events: list = []
    run_share(job, share, NUM_SHARES, Progress(job.step, sink=events.append))
    return events


@pytest.fixture(scope="module")
def data(stage: TinyStage, tmp_path_factory):
    return mix(make_rows(60), stage.checkpoint, tmp_path_factory.mktemp("shares"), held_out="9")


def test_shares_in_any_order_lost_and_begun_again_give_the_bits_of_one_process(stage, data, tmp_path):
    """Some rows are in the cache before. A share that was lost has kept a part of its shards; it is begun again when the
    others' stand there, and in the end the pass itself computes what a share never did."""
    caches = [tmp_path / name / "cache" for name in ("whole", "shared")]
    before = mix(make_rows(7), stage.checkpoint, tmp_path / "before", held_out="2")
    for number, cache in enumerate(caches):
        run_here(reference_job(tmp_path / f"before-{number}", before, stage.checkpoint, cache_dir=cache))
    whole = run_here(reference_job(tmp_path / "run", data, stage.checkpoint, cache_dir=caches[0], **SMALL))

    job = reference_job(tmp_path / "shared/run", data, stage.checkpoint, cache_dir=caches[1], **SMALL)
    there = set(shards(job))
    assert compute(job, 2)
    mine = [path for path in shards(job) if path not in there]
    assert len(mine) > 3
    for path in mine[1::2]:  # as if it had been killed
        path.unlink()
    compute(job, 0)
    of_others = {path: path.stat().st_mtime_ns for path in shards(job)}
    compute(job, 2)
    assert {path: path.stat().st_mtime_ns for path in of_others} == of_others
    assert compute(job, 2) == compute(job, 0) == []  # all of theirs is there
    assert not (job.out_dir / RESULT_FILE).exists()
    result = run_here(job)
    assert aligned_bytes(result) == aligned_bytes(whole)
    assert (result.rows, result.rows_computed) == (whole.rows, whole.rows_computed)
    assert not agreed_file(job).exists()


def test_shares_are_about_equal_and_compute_nothing_twice(stage, data, tmp_path):
    job = reference_job(tmp_path / "run", data, stage.checkpoint, **SMALL)
    told = [compute(job, share)[-1] for share in range(NUM_SHARES)]
    counts = [(event.done, event.total) for event in told]
    assert all(done == total for done, total in counts)
    assert sum(total for _, total in counts) == 60
    assert max(total for _, total in counts) < 30
    assert sum(len(np.load(path)["row_keys"]) for path in shards(job)) == 60


def test_whoever_comes_first_decides_and_another_layout_is_refused(stage, data, tmp_path):
    job = reference_job(tmp_path / "run", data, stage.checkpoint, **SMALL)
    job.write()
    first = AgreedRows("padded", {"train": [3, 1], "held_out": []})
    assert agree(job, first) == agree(job, AgreedRows("packed", {"train": [0], "held_out": [1]})) == first
    assert list(agreed_file(job).parent.glob("agreed-rows*")) == [agreed_file(job)]
    with pytest.raises(ConfigError, match="forward packed, and the others do with padded"):
        compute(job, 0)
    assert read_agreed(job.model_copy(update={"tokens_per_batch": 97}).at(job.out_dir)) is None
    agreed_file(job).write_bytes(b"PK")
    with pytest.raises(StoreError, match="Delete it, then start again"):
        compute(job, 0)


def test_processes_with_one_number_on_one_host_agree(stage, data, tmp_path):
    """As in containers, which number their processes themselves."""
    job = reference_job(tmp_path / "run", data, stage.checkpoint, **SMALL)
    job.write()
    proposed = [AgreedRows("padded", {"train": [row], "held_out": []}) for row in range(32)]
    with ThreadPoolExecutor(8) as pool:
        agreed = list(pool.map(lambda one: agree(job, one), proposed))
    assert all(one == agreed[0] for one in agreed)
    assert list(job.out_dir.glob("agreed-rows*")) == [agreed_file(job)]


def test_the_program_computes_a_share_beside_a_pass_that_holds_the_folder(stage, data, tmp_path, capsys):
    """Jobs of an array write no result, and do not wait for each other."""
    job = reference_job(tmp_path / "run", data, stage.checkpoint, **SMALL)
    argv = ["reference", "--job", str(job.write()), "--share"]
    for share in range(NUM_SHARES):
        assert main([*argv, f"{share}/{NUM_SHARES}"]) == 0
    assert not (job.out_dir / RESULT_FILE).exists()
    (cache,) = {path.parent for path in shards(job)}
    assert len(ReferenceCache(cache)._keys) == 60
    with pytest.raises(SystemExit):
        main([*argv, "3/3"])
    agreed_file(job).write_bytes(b"PK")
    assert main([*argv, "0/3"]) == StoreError.exit_code
    assert json.loads((job.out_dir / "error.json").read_text())["kind"] == "store"
