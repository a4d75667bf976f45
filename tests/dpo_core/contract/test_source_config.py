"""A source's columns are looked at when settings are read, not when its rows are."""

import pytest
from pydantic import ValidationError

from dpo_core.contract.source_config import OUR_COLUMNS, DataSource


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"promt": "question"}, r"columns names `promt`, which is none of ours: prompt, chosen"),
        ({"winner": "chosen"}, r"`winner`, which is none of ours.*from our column to theirs"),
        ({"chosen": " "}, "names no column of the set for chosen"),
        ({"chosen": "answer", "rejected": "answer"}, "`answer` for both chosen and rejected"),
    ],
)
def test_a_column_map_that_cannot_be_meant_is_refused(columns, message):
    with pytest.raises(ValidationError, match=message):
        DataSource(source="a", columns=columns)


def test_any_of_our_columns_may_be_named():
    ranked = {"answers", "scores", "ranks"}
    columns = {name: f"their {name}" for name in OUR_COLUMNS if name not in ranked}
    assert DataSource(source="a", columns=columns).columns == columns
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    assert DataSource(source="a", columns=swapped).columns == swapped
