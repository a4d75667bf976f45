"""Named sets as a mixture that is held out altogether, and a mixture that trains on none of their prompts."""

import json

import pytest

from dpo_core.contract.errors import StoreError
from dpo_core.data.held_out_sets import KEYS_FILE, HeldOutPrompts
from dpo_core.data.pair_dataset import PairDataset
from tests.dpo_core.steps.test_mix import _job, _questions, _row, _run, _source


@pytest.fixture
def sets(tmp_path):
    """Questions 2 and 3 in ``easy``; 3, 4 and 40 in ``hard``, 4 with two pairs."""
    easy = _source(tmp_path, [_row(2), _row(3)], "easy.jsonl")
    hard = _source(tmp_path, [_row(3), _row(4), _row(4, chosen="Another."), _row(40)], "hard.jsonl")
    return _run(_job(tmp_path, easy, hard, out="sets", set_names=("easy", "hard")))[0]


def test_all_of_the_sets_is_held_out_and_told_apart_by_name(sets):
    assert (sets.train_rows, sets.held_out_rows) == (0, 6)
    dataset = PairDataset.open(sets.data.path, "held_out")
    assert dataset.source_names == ("easy", "hard")
    of = {name: [] for name in dataset.source_names}
    for question, source in zip(_questions(dataset), dataset.sources, strict=True):
        of[dataset.source_names[source]].append(question)
    assert {name: sorted(questions) for name, questions in of.items()} == {
        "easy": [2, 3],
        "hard": [3, 4, 4, 40],
    }
    assert [ledger.kept for ledger in sets.per_source] == [2, 4]


def test_rows_whose_prompt_stands_in_a_set_go_and_the_ledger_says_where_they_stand(tmp_path, sets):
    rows = [_row(i) for i in range(6)] + [_row(3, chosen="Other words.", prompt="  Question 3?\n")]
    result, _ = _run(
        _job(tmp_path, _source(tmp_path, rows, amount="2.0"), apart_from=sets.data, held_out="1")
    )
    train, held_out = (PairDataset.open(result.data.path, split) for split in ("train", "held_out"))
    assert sorted({*_questions(train), *_questions(held_out)}) == [0, 1, 5]
    ledger = result.per_source[0]
    assert ledger.dropped == {"in_held_out_set": 8}  # 2, 3, 4 and 3 again, twice each
    assert ledger.rows_in == ledger.kept + 8
    found = {finding.row: (finding.like, finding.text, finding.like_text) for finding in ledger.findings}
    assert found[2] == ("easy", "Question 2?", "Question 2?")
    assert found[4][0] == "hard"
    assert sorted(found) == [2, 3, 4, 6]
    assert json.loads((tmp_path / "out" / "ledger.json").read_text())[0]["dropped"] == ledger.dropped


def test_a_mixture_that_shares_no_prompt_with_them_is_the_same_as_without(tmp_path, sets):
    source = _source(tmp_path, [_row(i) for i in range(10, 20)])
    apart, _ = _run(_job(tmp_path, source, apart_from=sets.data, held_out="2"))
    alone, _ = _run(_job(tmp_path, source, out="alone", held_out="2"))
    assert apart.data.fingerprint == alone.data.fingerprint  # so that nothing behind it is made again
    assert apart.job_fingerprint != alone.job_fingerprint


def test_their_names_and_which_pair_is_of_which_are_content(tmp_path, sets):
    easy = _source(tmp_path, [_row(2), _row(3), _row(40)], "a.jsonl")
    hard = _source(tmp_path, [_row(3), _row(4), _row(4, chosen="Another.")], "b.jsonl")
    fingerprints = {sets.data.fingerprint}
    for out, sources, names in (
        ("moved", (easy, hard), ("easy", "hard")),
        ("renamed", (easy, hard), ("easy", "harder")),
    ):
        fingerprints.add(_run(_job(tmp_path, *sources, out=out, set_names=names))[0].data.fingerprint)
    assert len(fingerprints) == 3


def test_prompts_that_were_changed_since_are_not_believed(sets):
    file = sets.data.path / KEYS_FILE
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="damaged"):
        HeldOutPrompts(sets.data)


def test_an_amount_of_a_set_holds(tmp_path):
    source = _source(tmp_path, [_row(i) for i in range(8)], "many.jsonl", amount="3")
    result, _ = _run(_job(tmp_path, source, out="few", set_names=("few",)))
    assert (result.train_rows, result.held_out_rows) == (0, 3)
