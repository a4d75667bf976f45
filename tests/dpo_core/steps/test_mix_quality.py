"""Looking for rows that should not be trained on: what goes, what the ledger says, whatever the number of processes."""

import json

import pytest

from dpo_core.contract.errors import DataError
from dpo_core.contract.progress import Progress
from dpo_core.contract.quality_config import QualityRules
from dpo_core.contract.refs import ResolvedEvaluationSet
from dpo_core.data import pool
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.steps import mix
from tests.dpo_core.steps.test_mix import _job, _questions, _row, _source
from tests.tiny_models import make_tokenizer


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
    quality = QualityRules(exact_duplicates="drop", **settings)
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


def test_rows_that_go_are_no_longer_counted_among_those_that_the_template_cuts(tmp_path):
    cuts = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content.split('|')[0] }}<|im_end|>{% endfor %}"
    )
    make_tokenizer(cuts).save_pretrained(tmp_path / "tokenizer")
    rows = [
        _row(i) | {"prompt": f"Question {i} \ud83d?|Really?", "chosen": f"Yes {i}.|True."}
        for i in (0, 1, 1, 1)
    ]
    for quality, expected in ((QualityRules(), 4), (QualityRules(exact_duplicates="drop"), 2)):
        result, _ = _mixed(_job(tmp_path, _source(tmp_path, rows), quality=quality, out=str(expected)))
        (ledger,) = result.per_source
        counts = (ledger.kept, ledger.left_out_in_part, ledger.prompt_left_out, ledger.replaced)
        assert counts == (expected,) * 4


def test_counted_rows_stay(tmp_path):
    counted, data = _mixed(_job(tmp_path, *_twice(tmp_path), quality=QualityRules(exact_duplicates="count")))
    plain, _ = _mixed(_job(tmp_path, *_twice(tmp_path), out="plain"))
    assert [ledger.counted for ledger in counted.per_source] == [{"exact_duplicate": 1}] * 2
    assert len(data) == 7
    assert counted.data.fingerprint == plain.data.fingerprint
    assert counted.job_fingerprint != plain.job_fingerprint


def test_a_prompt_with_other_answers_is_a_duplicate_only_where_prompts_are_compared(tmp_path):
    source = _source(tmp_path, [_row(1), _row(1, chosen="Another one."), _row(2)])
    pairs, _ = _mixed(_job(tmp_path, source, quality=QualityRules(exact_duplicates="drop")))
    prompts, _ = _mixed(
        _job(tmp_path, source, out="p", quality=QualityRules(exact_duplicates="drop", duplicates_of="prompt"))
    )
    assert (pairs.train_rows, prompts.train_rows) == (3, 2)


def test_a_row_taken_several_times_is_no_duplicate_of_itself(tmp_path):
    source = _source(tmp_path, [_row(i) for i in (0, 1, 1)], amount="3.0")
    result, _ = _mixed(_job(tmp_path, source, quality=QualityRules(exact_duplicates="drop")))
    assert result.per_source[0].dropped == {"exact_duplicate": 3}
    assert result.train_rows == 6


def test_what_duplicates_take_is_no_sign_of_broken_data(tmp_path):
    source = _source(tmp_path, [_row(0)] * 20 + [_row(1)])
    result, _ = _mixed(
        _job(tmp_path, source, max_dropped_fraction=0.1, quality=QualityRules(exact_duplicates="drop"))
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
                quality=QualityRules(exact_duplicates="drop"),
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
    result, _ = _mixed(_job(tmp_path, source, out="d", quality=QualityRules(exact_duplicates="drop")))
    assert (result.per_source[0].longer_chosen, result.per_source[0].longer_rejected) == (4, 2)


LONG = "Please tell me in a few words how the old mill at the river by our village was built and who built it"


def _near(tmp_path):
    """Rows 1 and 4 are row 0 in other words; 2 has other answers."""
    rows = [
        _row(0, prompt=LONG, chosen="It was built by monks.", rejected="Nobody knows that."),
        _row(1, prompt=LONG.upper() + "!", chosen="It was built by monks", rejected="Nobody knows that"),
        _row(2, prompt=LONG, chosen="By the miller and his sons.", rejected="I will not tell you."),
        _row(3),
        _row(4, prompt=LONG + "?", chosen="it was built by monks.", rejected="Nobody knows that ..."),
    ]
    return _source(tmp_path, rows, "near.jsonl")


@pytest.mark.parametrize(
    ("settings", "dropped"),
    [
        ({}, {1: 0, 4: 0}),
        ({"duplicate_kept": "last"}, {0: 4, 1: 4}),
        ({"duplicates_of": "prompt"}, {1: 0, 2: 0, 4: 0}),
        ({"near_similarity": 1.0, "near_ngram_words": 1}, {1: 0, 4: 0}),
    ],
)
def test_near_duplicates_go_and_are_shown_beside_what_they_are_like(tmp_path, settings, dropped):
    quality = QualityRules(near_duplicates="drop", **settings)
    result, data = _mixed(_job(tmp_path, _near(tmp_path), quality=quality))
    ledger = result.per_source[0]
    assert {one.row: one.like_row for one in ledger.findings} == dropped
    assert all(one.similarity >= quality.near_similarity and one.like_text for one in ledger.findings)
    assert ledger.dropped == {"near_duplicate": len(dropped)}
    assert len(data) == 5 - len(dropped)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, [{1: ("a.jsonl", 0)}, {1: ("a.jsonl", 0), 2: ("a.jsonl", 0)}]),
        ({"duplicates_across": "each_source"}, [{1: ("a.jsonl", 0)}, {2: ("b.jsonl", 1)}]),
        ({"duplicate_kept": "last"}, [{0: ("b.jsonl", 2), 1: ("b.jsonl", 2)}, {1: ("b.jsonl", 2)}]),
        (
            {"duplicate_kept": "last", "duplicates_across": "each_source"},
            [{0: ("a.jsonl", 1)}, {1: ("b.jsonl", 2)}],
        ),
    ],
)
def test_near_duplicates_of_other_sources_go_by_rule(tmp_path, settings, found):
    """Four wordings of one row, two in the one file and two in the other."""
    answers = {"chosen": "It was built by monks.", "rejected": "Nobody knows that."}
    like = [
        _row(0, prompt=prompt, **answers) for prompt in (LONG, LONG.upper() + "!", LONG + "?", LONG + " ...")
    ]
    first = _source(tmp_path, [*like[:2], _row(5)], "a.jsonl")
    second = _source(tmp_path, [_row(6), *like[2:]], "b.jsonl")
    quality = QualityRules(near_duplicates="drop", **settings)
    result, data = _mixed(_job(tmp_path, first, second, quality=quality))
    assert [
        {one.row: (one.like, one.like_row) for one in ledger.findings} for ledger in result.per_source
    ] == found
    assert [ledger.dropped for ledger in result.per_source] == [
        {"near_duplicate": len(rows)} for rows in found
    ]
    assert len(data) == 6 - sum(map(len, found))


def test_what_is_found_depends_on_no_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "MIN_ROWS_FOR_SEVERAL", 1)
    monkeypatch.setattr(pool, "ROWS_PER_CHUNK", 2)
    source, sets = _near(tmp_path), _evaluation_set(tmp_path, [{"prompt": "Question 3? " + LONG[:60]}])
    quality = QualityRules(exact_duplicates="count", near_duplicates="drop", contaminated="count")
    results = [
        _mixed(_job(tmp_path, source, quality=quality, evaluation_sets=sets, out=f"o{n}", num_workers=n))[0]
        for n in (1, 3)
    ]
    assert results[0].per_source == results[1].per_source
    assert results[0].evaluation_sets == results[1].evaluation_sets
    assert results[0].data.fingerprint == results[1].data.fingerprint


def _evaluation_set(tmp_path, rows, fields=("prompt",)):
    source = _source(tmp_path, rows, "eval.jsonl")
    return (ResolvedEvaluationSet(**source.model_dump(), fields=fields),)


def test_rows_that_hold_an_evaluation_instance_go_and_both_are_shown(tmp_path):
    rows = [_row(0), _row(1, prompt="Now " + LONG + ", thanks"), {"note": "x"}, _row(3)]
    sets = _evaluation_set(
        tmp_path,
        [{"prompt": "Why?"}, {"prompt": LONG}, {"prompt": "What is the longest river in all of Asia"}],
    )
    source = _source(tmp_path, rows, amount="2.0")
    result, data = _mixed(_job(tmp_path, source, evaluation_sets=sets))
    ledger = result.per_source[0]
    assert ledger.dropped == {"not_a_preference_row": 2, "contaminated": 2}
    (found,) = ledger.findings
    assert (found.row, found.like, found.like_row, found.similarity) == (1, "eval.jsonl", 1, 1.0)
    assert found.text.startswith("Now Please tell me")
    assert found.like_text == LONG
    assert sorted(_questions(data)) == [0, 0, 3, 3]
    (overlap,) = result.evaluation_sets
    assert (overlap.instances, overlap.too_short, overlap.overlapping, overlap.rows) == (3, 1, 1, 1)


def test_an_evaluation_set_without_the_named_column_is_refused(tmp_path):
    sets = _evaluation_set(tmp_path, [{"question": "Why?"}], fields=("problem", "question"))
    with pytest.raises(DataError, match=r"eval.jsonl has no column problem.*columns are question"):
        _mixed(_job(tmp_path, _source(tmp_path, [_row(1)]), evaluation_sets=sets))


def test_checks_that_leave_no_row_are_an_error(tmp_path):
    sets = _evaluation_set(tmp_path, [{"prompt": LONG}])
    with pytest.raises(DataError, match=r"have left no row: .*1 contaminated"):
        _mixed(_job(tmp_path, _source(tmp_path, [_row(1, prompt=LONG)]), evaluation_sets=sets))
