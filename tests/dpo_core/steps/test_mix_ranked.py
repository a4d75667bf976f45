"""Several pairs of one row through the mix step: counted, in order, together on one side of the split."""

import numpy as np

from dpo_core.data.pair_dataset import PairDataset
from tests.dpo_core.steps.test_mix import _job, _source
from tests.dpo_core.steps.test_mix_pair_numbers import mixed

COLUMNS = {"answers": "completions.response", "scores": "completions.overall_score"}


def ranked(tmp_path, rule, num_rows=12, **fields):
    rows = [
        {
            "instruction": f"Question {row}?",
            "completions": [
                {"response": f"Answer {score} of {row}", "overall_score": score} for score in scores
            ],
        }
        for row, scores in ((row, [1, 3, 2] if row != 4 else [2, 2, 2]) for row in range(num_rows))
    ]
    update = {"columns": COLUMNS, "pairs": rule} | fields
    return _source(tmp_path, rows, "ranked.jsonl").model_copy(update=update)


def test_all_pairs_of_a_row_are_counted_and_stay_together(tmp_path):
    job = _job(tmp_path, ranked(tmp_path, "all"), held_out="3")
    result, train = mixed(job)
    (ledger,) = result.per_source
    assert (ledger.available_rows, ledger.rows_in, ledger.kept, ledger.extra_pairs) == (12, 34, 33, 22)
    assert (ledger.dropped, ledger.offenders) == ({"tied_answers": 1}, {"tied_answers": (4,)})
    held_out = PairDataset.open(result.data.path, "held_out")
    assert (len(train), len(held_out)) == (24, 9)
    prompts = [tuple(ids) for ids in held_out.prompt_column("prompt_ids")]
    assert sorted(prompts) == sorted(3 * list(dict.fromkeys(prompts)))
    assert len(set(train.row_keys.tolist()) | set(held_out.row_keys.tolist())) == 33


def test_a_row_taken_several_times_is_the_same_pair(tmp_path):
    result, data = mixed(_job(tmp_path, ranked(tmp_path, "best_random", amount="3.0"), held_out="0"))
    (ledger,) = result.per_source
    assert (ledger.rows_in, ledger.kept, ledger.extra_pairs) == (36, 33, 0)
    _, times = np.unique(data.row_keys, return_counts=True)
    assert times.tolist() == [3] * 11


def test_duplicates_are_shown_with_the_pair_that_they_are(tmp_path):
    from dpo_core.contract.quality_config import QualityRules

    source = ranked(tmp_path, "all", num_rows=2)
    rules = QualityRules(exact_duplicates="drop", duplicates_of="prompt")
    (ledger,) = mixed(_job(tmp_path, source, held_out="0", quality=rules))[0].per_source
    assert (ledger.kept, ledger.dropped) == (2, {"exact_duplicate": 4})
    assert {(one.row, one.like_row) for one in ledger.findings} == {(0, 0), (1, 1)}


def test_the_seed_is_part_of_what_is_drawn(tmp_path):
    keys = []
    for seed in (8, 9):
        (tmp_path / str(seed)).mkdir()
        _, data = mixed(_job(tmp_path / str(seed), ranked(tmp_path, "best_random"), held_out="0", seed=seed))
        keys.append(sorted(data.row_keys.tolist()))
    assert keys[0] != keys[1]
