"""Which pairs form which batch: every row once an epoch, every pair on one rank, the same gradient however it is cut."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dpo_core.data.order import batches_by_tokens, cut_for_rank, forward_tokens, num_steps, step_rows
from dpo_core.jobs import BatchPlan
from tests.step_process import metrics_of
from tests.tiny_stage import run_here

rows_count, pairs_count, seeds = st.integers(1, 60), st.integers(1, 20), st.integers(0, 5)


@given(num_rows=rows_count, pairs=pairs_count, epochs=st.integers(1, 4), seed=seeds)
def test_every_epoch_visits_every_row_once(num_rows, pairs, epochs, seed):
    steps = num_steps(num_rows, pairs, epochs, None)
    per_epoch = steps // epochs
    for epoch in range(epochs):
        batches = [step_rows(step, num_rows, pairs, seed) for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)]
        assert sorted(np.concatenate(batches).tolist()) == list(range(num_rows))
        assert all(len(batch) == pairs for batch in batches[:-1])


def test_the_first_epoch_is_the_mixtures_order_and_later_ones_are_not():
    first, second, third = (np.concatenate([step_rows(s, 50, 5, 8) for s in range(e * 10, e * 10 + 10)]) for e in range(3))
    assert first.tolist() == list(range(50))
    assert second.tolist() != first.tolist()
    assert third.tolist() != second.tolist()
    assert second.tolist() != np.concatenate([step_rows(s, 50, 5, 9) for s in range(10, 20)]).tolist()


def test_max_steps_cuts_a_run_and_does_not_lengthen_it():
    assert num_steps(10, 4, 2, None) == 6  # 4 + 4 + 2, twice
    assert num_steps(10, 4, 2, 5) == 5
    assert num_steps(10, 4, 2, 100) == 6


@given(num_rows=rows_count, world=st.integers(1, 5), per_device=st.integers(1, 4), accumulation=st.integers(1, 3),
       seed=seeds, data=st.data())
def test_every_pair_is_on_one_rank_with_weight_one_and_ranks_are_in_step(num_rows, world, per_device, accumulation, seed,
                                                                        data):
    plan = BatchPlan(global_pairs=world * per_device * accumulation, per_device_pairs=per_device,
                     accumulation=accumulation, num_processes=world)
    step = data.draw(st.integers(0, num_steps(num_rows, plan.global_pairs, 2, None) - 1))
    rows = step_rows(step, num_rows, plan.global_pairs, seed)
    lengths = np.random.default_rng(seed).integers(2, 100, len(rows))
    by_rank = [cut_for_rank(rows, lengths, plan, 10_000, rank) for rank in range(world)]
    counted = Counter(row for cuts in by_rank for cut in cuts
                      for row, weight in zip(cut.rows, cut.weights, strict=True) if weight)
    assert counted == Counter(rows.tolist())
    assert {weight for cuts in by_rank for cut in cuts for weight in cut.weights} <= {0.0, 1.0}
    assert len({len(cuts) for cuts in by_rank}) == 1
    assert all(1 <= len(cut.rows) <= per_device for cuts in by_rank for cut in cuts)
    assert len(by_rank[0]) <= accumulation


def test_a_batch_is_cut_by_length():
    plan = BatchPlan(global_pairs=6, per_device_pairs=2, accumulation=3, num_processes=1)
    cuts = cut_for_rank(np.array([10, 11, 12, 13, 14, 15]), np.array([5, 90, 7, 80, 6, 50]), plan, 10_000, 0)
    assert [cut.rows for cut in cuts] == [(11, 13), (15, 12), (14, 10)]


def test_long_pairs_make_a_microbatch_hold_fewer():
    """Two of 90 would be 180 padded tokens; a pair longer than the budget still gets its forward."""
    plan = BatchPlan(global_pairs=6, per_device_pairs=4, accumulation=2, num_processes=2)
    rows, lengths = np.array([10, 11, 12, 13, 14, 15]), np.array([5, 90, 7, 80, 6, 300])
    first, second = (cut_for_rank(rows, lengths, plan, 179, rank) for rank in (0, 1))
    assert [cut.rows for cut in first] == [(15,), (13, 12)]
    assert [cut.rows for cut in second] == [(11,), (14, 10)]


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(1, 120), data=st.data())
def test_batches_keep_the_order_and_the_budget(lengths, budget, data):
    order = data.draw(st.permutations(range(len(lengths))))
    batches = batches_by_tokens(order, np.array(lengths), budget)
    assert [row for batch in batches for row in batch] == list(order)
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        padded = max(lengths[row] for row in batch) * len(batch)
        assert padded <= budget or len(batch) == 1
        if following:  # no batch ends while the next row would still have fitted
            assert max(lengths[row] for row in [*batch, following[0]]) * (len(batch) + 1) > budget


def test_no_rows_give_no_batches():
    assert batches_by_tokens([], np.zeros(0, dtype=np.int64), 10) == []


def test_tokens_of_a_pair_in_a_forward():
    lengths, prefixes = np.array([[10, 14], [8, 8]]), np.array([6, 7])
    assert forward_tokens(lengths, prefixes, "prefix_sharing").tolist() == [18, 9]  # 10 + 14 - 6, 8 + 8 - 7
    assert forward_tokens(lengths, prefixes, "padded").tolist() == [28, 16]  # two rows as long as the longer side


@pytest.fixture(scope="module")
def one_at_a_time(stage, tmp_path_factory):
    """34 rows in global batches of 4: 9 steps, the last of 2 pairs, one pair a forward."""
    return run_here(stage.train_job(tmp_path_factory.mktemp("single"), per_device=1))


# 3 cuts a batch of 4 unevenly, into 3 and 1: a mean of means would weigh the last pair three times.
@pytest.mark.parametrize("shape", [{"per_device": 2}, {"per_device": 3}, {"per_device": 4},
                                   {"per_device": 4, "forward": "padded"}], ids=str)
def test_final_weights_do_not_depend_on_how_a_batch_is_cut(stage, tmp_path, one_at_a_time, shape):
    job = stage.train_job(tmp_path, **shape)
    result = run_here(job)
    assert result.job_fingerprint == one_at_a_time.job_fingerprint  # a batch's shape is no part of a run's definition
    expected = load_file(one_at_a_time.weights_path / "model.safetensors")
    start = load_file(stage.checkpoint.path / "model.safetensors")
    for name, tensor in load_file(result.weights_path / "model.safetensors").items():
        # Adam's first steps move a weight by the learning rate whatever its gradient's size, so noise in a gradient near
        # 0 shows in full; it may show in few weights and by little of the way they went.
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-5)
        assert (tensor - start[name]).abs().max() > 1e-3, name
    # Neither clipping nor Adam lets a gradient's size show in the weights, so the norm is compared as well.
    for name in ("loss", "grad_norm"):
        ours, theirs = ([step[name] for step in metrics_of(folder)]
                        for folder in (tmp_path, one_at_a_time.metrics_path.parent))
        assert ours == pytest.approx(theirs, rel=1e-4), name
