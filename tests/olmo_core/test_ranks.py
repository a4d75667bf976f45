"""Several processes on OLMo-core where they differ: in sizes, in files that they see, in layouts, in the ends of answers.

The cases of ``test_sharded`` that ``test_runs`` has not, against one process with transformers. What knows nothing of the
model that computes (an interconnect, the other back ends) is tested there alone.
"""

import json

import pytest

from tests.dpo_core.engine.test_sharded import (
    BACK_ENDS,
    assert_all_take_the_next_layout,
    assert_evaluated_as_by_one,
    assert_lost_rank_is_said,
    assert_odd_sizes_fit,
    assert_other_shards_do_no_harm,
    job_in,
    odd_stage,
)
from tests.olmo_core.test_runs import on_olmo_core
from tests.programs.lost_ranks import LOSE_BY

__all__ = ["odd_stage"]  # a fixture

pytestmark = pytest.mark.integration

FSDP2, OLMO_CORE = BACK_ENDS["fsdp2"], {"implementation": "olmo_core"}


def test_a_model_of_odd_sizes_is_trained_and_exported(odd_stage, tmp_path):
    """Padding of parts, untied embeddings; the export is loaded by stock transformers."""
    assert_odd_sizes_fit(odd_stage, on_olmo_core(job_in(odd_stage, tmp_path / "sharded", FSDP2)))


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGSTOP"])
def test_a_rank_that_is_lost_ends_the_step_as_one_to_be_tried_again(
    stage, tmp_path, monkeypatch, signal_name
):
    monkeypatch.setenv(LOSE_BY, signal_name)
    assert_lost_rank_is_said(on_olmo_core(job_in(stage, tmp_path, FSDP2)), 2, signal_name)


def test_ranks_that_see_other_shards_compute_the_same_rows_together(stage, tmp_path):
    assert_other_shards_do_no_harm(stage, tmp_path, **OLMO_CORE)


def test_a_layout_that_one_rank_cannot_compute_none_does(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("REFUSES", "packed")
    assert_all_take_the_next_layout(stage, tmp_path, **OLMO_CORE)


def test_rank_0_says_where_answers_end(stage, tmp_path):
    assert_evaluated_as_by_one(stage, tmp_path, "tests.programs.stopping_ranks", sharding=FSDP2, **OLMO_CORE)


def test_where_the_whole_model_fits_a_card_answers_need_no_exchange(stage, tmp_path):
    """Five prompts for two ranks: one has more to do, and waits for nobody."""
    assert_evaluated_as_by_one(stage, tmp_path, "tests.programs.roomy_cards", sharding=FSDP2, **OLMO_CORE)
    told = [json.loads((tmp_path / "shared" / f"answered-{rank}.json").read_text()) for rank in (0, 1)]
    assert [of_rank["prompts"] for of_rank in told] == [2 * 3, 2 * 2], "before and after"
    assert [of_rank["exchanges"] for of_rank in told] == [0, 0]
