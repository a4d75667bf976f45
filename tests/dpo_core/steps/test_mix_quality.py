"""Looking for rows that should not be trained on: what goes, what the ledger says, whatever the number of processes."""

import json

import pytest

from dpo_core.contract.progress import Progress
from dpo_core.contract.quality_config import QualityConfig
from dpo_core.data import pool
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.steps import mix
from tests.dpo_core.steps.test_mix import _job, _questions, _row, _source


def _mixed(job):
    result = mix.run(job, Progress("mix", interval_seconds=0, sink=lambda event: None))
    return result, PairDataset.open(result.data.path, "train")


def _twice(tmp_path):
    """a: 0 1 2 1 3; b: 2 4."""
    first = _source(tmp_path, [_row(i) for i in (0, 1, 2, 1, 3)], "a.jsonl")
    return first, _source(tmp_path, [_row(i) for i in (2, 4)], "b.jsonl")


def test_nothing_is_looked_for_by_default(tmp_path):
    result, data = _mixed(_job(tmp_path, *_twice(tmp_path)))
    assert sorted(_questions(data)) == [0, 1, 1, 2, 2, 3, 4]
    assert not any(ledger.findings or ledger.counted for ledger in result.per_source)


@pytest.mark.parametrize(
    ("settings", "left", "dropped"),
    [
        ({}, [0, 1, 2, 3, 4], [{3: ("a.jsonl", 1)}, {0: ("a.jsonl", 2)}]),
        ({"duplicates_across": "each_source"}, [0, 1, 2, 2, 3, 4], [{3: ("a.jsonl", 1)}, {}]),
        ({"duplicate_kept": "last"}, [0, 1, 2, 3, 4], [{1: ("a.jsonl", 3), 2: ("b.jsonl", 0)}, {}]),
    ],
)
def test_all_but_one_of_equal_rows_go_by_rule(tmp_path, settings, left, dropped):
    quality = QualityConfig(exact_duplicates="drop", **settings)
    result, data = _mixed(_job(tmp_path, *_twice(tmp_path), quality=quality))
    assert sorted(_questions(data)) == left
    for ledger, expected in zip(result.per_source, dropped, strict=True):
        assert {one.row: (one.like, one.like_row) for one in ledger.findings} == expected
        assert ledger.dropped == ({"exact_duplicate": len(expected)} if expected else {})
        assert ledger.offenders == ({"exact_duplicate": tuple(expected)} if expected else {})
        assert ledger.rows_in == ledger.kept + sum(ledger.dropped.values())
    written = json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert written == [ledger.model_dump(mode="json") for ledger in result.per_source]
    assert written[0]["findings"][0]["text"].startswith("Question ")


def test_counted_rows_stay(tmp_path):
    counted, data = _mixed(_job(tmp_path, *_twice(tmp_path), quality=QualityConfig(exact_duplicates="count")))
    plain, _ = _mixed(_job(tmp_path, *_twice(tmp_path), out="plain"))
    assert [ledger.counted for ledger in counted.per_source] == [{"exact_duplicate": 1}] * 2
    assert len(data) == 7
    assert counted.data.fingerprint == plain.data.fingerprint
    assert counted.job_fingerprint != plain.job_fingerprint


def test_a_prompt_with_other_answers_is_a_duplicate_only_where_prompts_are_compared(tmp_path):
    source = _source(tmp_path, [_row(1), _row(1, chosen="Another one."), _row(2)])
    pairs, _ = _mixed(_job(tmp_path, source, quality=QualityConfig(exact_duplicates="drop")))
    prompts, _ = _mixed(
        _job(
            tmp_path, source, out="p", quality=QualityConfig(exact_duplicates="drop", duplicates_of="prompt")
        )
    )
    assert (pairs.train_rows, prompts.train_rows) == (3, 2)


def test_a_row_taken_several_times_is_no_duplicate_of_itself(tmp_path):
    source = _source(tmp_path, [_row(i) for i in (0, 1, 1)], amount="3.0")
    result, _ = _mixed(_job(tmp_path, source, quality=QualityConfig(exact_duplicates="drop")))
    assert result.per_source[0].dropped == {"exact_duplicate": 3}
    assert result.train_rows == 6


def test_what_duplicates_take_is_no_sign_of_broken_data(tmp_path):
    source = _source(tmp_path, [_row(0)] * 20 + [_row(1)])
    result, _ = _mixed(
        _job(tmp_path, source, max_dropped_fraction=0.1, quality=QualityConfig(exact_duplicates="drop"))
    )
    assert result.train_rows == 2


def test_several_processes_find_what_one_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "MIN_ROWS_FOR_SEVERAL", 1)
    monkeypatch.setattr(pool, "ROWS_PER_CHUNK", 3)
    rows = [_row(i % 7, note=i) for i in range(40)]
    results = [
        _mixed(
            _job(
                tmp_path,
                _source(tmp_path, rows, amount="1.5"),
                out=f"out{workers}",
                num_workers=workers,
                quality=QualityConfig(exact_duplicates="drop"),
            )
        )[0]
        for workers in (1, 3)
    ]
    assert results[0].data.fingerprint == results[1].data.fingerprint
    assert results[0].per_source == results[1].per_source


def test_the_longer_answer_is_counted_of_the_rows_that_stay(tmp_path):
    longer = [_row(i, chosen=f"A very long and good answer {i}.") for i in (0, 0, 1)]
    source = _source(
        tmp_path, [*longer, _row(2, rejected="A bad answer that goes on."), {"note": "x"}], amount="2.0"
    )
    plain, _ = _mixed(_job(tmp_path, source))
    ledger = plain.per_source[0]
    assert (ledger.longer_chosen, ledger.longer_rejected) == (6, 2)
    result, _ = _mixed(_job(tmp_path, source, out="d", quality=QualityConfig(exact_duplicates="drop")))
    assert (result.per_source[0].longer_chosen, result.per_source[0].longer_rejected) == (4, 2)
