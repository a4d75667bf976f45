"""Which pairs form which batch: every row once an epoch, every pair on one rank, the same gradient however it is cut."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dpo_core.contract.jobs import BatchPlan
from dpo_core.data.order import (
    batch_tokens,
    batches_by_tokens,
    cut_for_rank,
    deal,
    forward_tokens,
    largest_microbatch,
    num_steps,
    step_rows,
)
from tests.step_process import metrics_of
from tests.tiny_stage import run_here

rows_count, pairs_count, seeds = st.integers(1, 60), st.integers(1, 20), st.integers(0, 5)
layouts = st.sampled_from(["packed", "prefix_sharing", "padded"])


@given(num_rows=rows_count, pairs=pairs_count, epochs=st.integers(1, 4), seed=seeds)
def test_every_epoch_visits_every_row_once(num_rows, pairs, epochs, seed):
    steps = num_steps(num_rows, pairs, epochs, None)
    per_epoch = steps // epochs
    for epoch in range(epochs):
        batches = [
            step_rows(step, num_rows, pairs, seed)
            for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)
        ]
        assert sorted(np.concatenate(batches).tolist()) == list(range(num_rows))
        assert all(len(batch) == pairs for batch in batches[:-1])


def test_the_first_epoch_is_the_mixtures_order_and_later_ones_are_not():
    first, second, third = (
        np.concatenate([step_rows(s, 50, 5, 8) for s in range(e * 10, e * 10 + 10)]) for e in range(3)
    )
    assert first.tolist() == list(range(50))
    assert second.tolist() != first.tolist()
    assert third.tolist() != second.tolist()
    assert second.tolist() != np.concatenate([step_rows(s, 50, 5, 9) for s in range(10, 20)]).tolist()


def test_max_steps_cuts_a_run_and_does_not_lengthen_it():
    assert num_steps(10, 4, 2, None) == 6  # 4 + 4 + 2, twice
    assert num_steps(10, 4, 2, 5) == 5
    assert num_steps(10, 4, 2, 100) == 6


@st.composite
def global_batches(draw) -> tuple[np.ndarray, np.ndarray, BatchPlan, int]:
    """Rows of one step (the last of an epoch may be short), their tokens, a plan for them, a token budget."""
    world, per_device, accumulation = (
        draw(st.integers(1, 5)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
    )
    plan = BatchPlan(
        global_pairs=world * per_device * accumulation,
        per_device_pairs=per_device,
        accumulation=accumulation,
        num_processes=world,
    )
    num_rows, seed = draw(rows_count), draw(seeds)
    step = draw(st.integers(0, num_steps(num_rows, plan.global_pairs, 2, None) - 1))
    rows = step_rows(step, num_rows, plan.global_pairs, seed)
    return rows, np.random.default_rng(seed).integers(2, 100, len(rows)), plan, draw(st.integers(1, 500))


@given(batch=global_batches(), layout=layouts)
def test_every_pair_is_on_one_rank_with_weight_one_and_ranks_are_in_step(batch, layout):
    rows, lengths, plan, budget = batch
    by_rank = [cut_for_rank(rows, lengths, plan, budget, rank, layout) for rank in range(plan.num_processes)]
    counted = Counter(
        row
        for cuts in by_rank
        for cut in cuts
        for row, weight in zip(cut.rows, cut.weights, strict=True)
        if weight
    )
    assert counted == Counter(rows.tolist())
    assert sum(weight for cuts in by_rank for cut in cuts for weight in cut.weights) == len(rows)
    assert {weight for cuts in by_rank for cut in cuts for weight in cut.weights} <= {0.0, 1.0}
    assert len({len(cuts) for cuts in by_rank}) == 1
    tokens = dict(zip(rows.tolist(), lengths, strict=True))
    for cut in (cut for cuts in by_rank for cut in cuts):
        assert 1 <= len(cut.rows) <= plan.per_device_pairs
        assert (
            len(cut.rows) == 1 or batch_tokens(np.array([tokens[row] for row in cut.rows]), layout) <= budget
        )


@given(batch=global_batches(), layout=layouts)
def test_without_long_pairs_a_step_takes_no_more_forwards_than_the_plan_says(batch, layout):
    rows, lengths, plan, _ = batch
    assert len(cut_for_rank(rows, lengths, plan, 10_000, 0, layout)) <= plan.accumulation


@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=60), ranks=st.integers(1, 8))
def test_ranks_get_near_equal_tokens_and_pairs(lengths, ranks):
    shares = deal(np.array(lengths), ranks)
    tokens = [sum(lengths[place] for place in share) for share in shares]
    assert sorted(place for share in shares for place in share) == list(range(len(lengths)))
    assert max(tokens) - min(tokens) <= max(lengths)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_step_of_real_lengths_is_dealt_within_a_few_percent():
    lengths = np.minimum(np.random.default_rng(0).lognormal(6, 0.7, 128).astype(int), 4096)
    tokens = [int(lengths[share].sum()) for share in deal(lengths, 8)]
    assert max(tokens) / min(tokens) < 1.02  # every eighth pair of the sorted batch: 1.18


@given(batch=global_batches(), other_world=st.integers(1, 6), layout=layouts)
def test_a_step_trains_the_same_rows_on_every_world_size(batch, other_world, layout):
    rows, lengths, plan, budget = batch
    other = plan.model_copy(update={"num_processes": other_world, "per_device_pairs": 1})
    trained = [
        sorted(
            row
            for rank in range(p.num_processes)
            for cut in cut_for_rank(rows, lengths, p, budget, rank, layout)
            for row, weight in zip(cut.rows, cut.weights, strict=True)
            if weight
        )
        for p in (plan, other)
    ]
    assert trained[0] == trained[1]


def test_a_rank_with_fewer_forwards_splits_one_before_it_repeats_a_pair():
    """Rank 0's two long pairs need a forward each; rank 1's two short ones would fit into one, and are split instead."""
    plan = BatchPlan(global_pairs=4, per_device_pairs=2, accumulation=1, num_processes=2)
    cuts = [
        cut_for_rank(np.array([10, 11, 12, 13]), np.array([100, 99, 40, 30]), plan, 130, rank)
        for rank in (0, 1)
    ]
    assert [cut.rows for cut in cuts[0]] == [(10,), (13,)]
    assert [cut.rows for cut in cuts[1]] == [(11,), (12,)]
    assert all(cut.weights == (1.0,) for rank in cuts for cut in rank)


def test_a_rank_without_a_pair_runs_a_filler_of_weight_zero():
    plan = BatchPlan(global_pairs=3, per_device_pairs=1, accumulation=1, num_processes=3)
    cuts = [cut_for_rank(np.array([7, 8]), np.array([9, 5]), plan, 100, rank) for rank in range(3)]
    assert [(cut.rows, cut.weights) for (cut,) in cuts] == [((7,), (1.0,)), ((8,), (1.0,)), ((8,), (0.0,))]


def test_a_batch_is_cut_by_length():
    plan = BatchPlan(global_pairs=6, per_device_pairs=2, accumulation=3, num_processes=1)
    cuts = cut_for_rank(np.array([10, 11, 12, 13, 14, 15]), np.array([5, 90, 7, 80, 6, 50]), plan, 10_000, 0)
    assert [cut.rows for cut in cuts] == [(11, 13), (15, 12), (14, 10)]


def test_long_pairs_make_a_microbatch_hold_fewer():
    """Two of 90 would be 180 padded tokens; a pair longer than the budget still gets its forward."""
    plan = BatchPlan(global_pairs=6, per_device_pairs=4, accumulation=2, num_processes=1)
    rows, lengths = np.array([10, 11, 12, 13, 14, 15]), np.array([5, 90, 7, 80, 6, 300])
    assert [cut.rows for cut in cut_for_rank(rows, lengths, plan, 179, 0)] == [
        (15,),
        (11,),
        (13, 12),
        (14, 10),
    ]
    # 488 tokens are three forwards of 179 at least; the short ones fill up the second and the third.
    assert [cut.rows for cut in cut_for_rank(rows, lengths, plan, 179, 0, "packed")] == [
        (15,),
        (11, 10),
        (13, 12, 14),
    ]


def test_packed_forwards_get_near_equal_tokens():
    plan = BatchPlan(global_pairs=8, per_device_pairs=4, accumulation=2, num_processes=1)
    lengths = np.array([500, 400, 300, 200, 100, 90, 80, 70])
    tokens = {
        layout: [
            int(lengths[list(cut.rows)].sum())
            for cut in cut_for_rank(np.arange(8), lengths, plan, 4096, 0, layout)
        ]
        for layout in ("packed", "prefix_sharing")
    }
    assert tokens == {"packed": [870, 870], "prefix_sharing": [1400, 340]}


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    budget=st.integers(1, 120),
    layout=layouts,
    data=st.data(),
)
def test_batches_keep_the_order_and_the_budget(lengths, budget, layout, data):
    order = data.draw(st.permutations(range(len(lengths))))
    batches = batches_by_tokens(order, np.array(lengths), budget, layout=layout)

    def size(batch: list[int]) -> int:
        in_batch = [lengths[row] for row in batch]
        return sum(in_batch) if layout == "packed" else max(in_batch) * len(in_batch)

    assert [row for batch in batches for row in batch] == list(order)
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        assert size(batch) <= budget or len(batch) == 1
        if following:  # no batch ends while the next row would still have fitted
            assert size([*batch, following[0]]) > budget


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60),
    world=st.integers(1, 3),
    budget=st.integers(1, 300),
    per_device=st.integers(1, 4),
    seed=seeds,
    layout=layouts,
)
def test_the_largest_microbatch_is_the_largest_of_all_that_the_run_will_cut(
    lengths, world, budget, per_device, seed, layout
):
    plan = BatchPlan(
        global_pairs=2 * world * per_device, per_device_pairs=per_device, accumulation=2, num_processes=world
    )
    lengths, steps = np.array(lengths), num_steps(len(lengths), plan.global_pairs, 2, None)
    sizes = {}
    for step in range(steps):
        rows = step_rows(step, len(lengths), plan.global_pairs, seed)
        for rank in range(world):
            for cut in cut_for_rank(rows, lengths[rows], plan, budget, rank, layout):
                in_cut = lengths[list(cut.rows)]
                sizes[cut.rows] = (batch_tokens(in_cut, layout), int(in_cut.max()))
    found = largest_microbatch(lengths, plan, budget, seed, steps, layout)
    assert sizes[found] == max(sizes.values())


def test_no_rows_give_no_batches():
    assert batches_by_tokens([], np.zeros(0, dtype=np.int64), 10) == []


def test_tokens_of_a_pair_in_a_forward():
    lengths, prefixes = np.array([[10, 14], [8, 8]]), np.array([6, 7])
    assert forward_tokens(lengths, prefixes, "prefix_sharing").tolist() == [18, 9]  # 10 + 14 - 6, 8 + 8 - 7
    assert forward_tokens(lengths, prefixes, "packed").tolist() == [18, 9]
    assert forward_tokens(lengths, prefixes, "padded").tolist() == [
        28,
        16,
    ]  # two rows as long as the longer side


@pytest.fixture(scope="module")
def one_at_a_time(stage, tmp_path_factory):
    """34 rows in global batches of 4: 9 steps, the last of 2 pairs, one pair a forward."""
    return run_here(stage.train_job(tmp_path_factory.mktemp("single"), per_device=1))


# 3 cuts a batch of 4 unevenly, into 3 and 1: a mean of means would weigh the last pair three times.
@pytest.mark.parametrize(
    "shape",
    [{"per_device": 2}, {"per_device": 3}, {"per_device": 4}, {"per_device": 4, "forward": "padded"}],
    ids=str,
)
def test_final_weights_do_not_depend_on_how_a_batch_is_cut(stage, tmp_path, one_at_a_time, shape):
    job = stage.train_job(tmp_path, **shape)
    result = run_here(job)
    assert (
        result.job_fingerprint == one_at_a_time.job_fingerprint
    )  # a batch's shape is no part of a run's definition
    expected = load_file(one_at_a_time.weights_path / "model.safetensors")
    start = load_file(stage.checkpoint.path / "model.safetensors")
    for name, tensor in load_file(result.weights_path / "model.safetensors").items():
        # Adam's first steps move a weight by the learning rate whatever its gradient's size, so noise in a gradient near
        # 0 shows in full; it may show in few weights and by little of the way they went.
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-5)
        assert (tensor - start[name]).abs().max() > 1e-3, name
    # Neither clipping nor Adam lets a gradient's size show in the weights, so the norm is compared as well.
    for name in ("loss", "grad_norm"):
        ours, theirs = (
            [step[name] for step in metrics_of(folder)]
            for folder in (tmp_path, one_at_a_time.metrics_path.parent)
        )
        assert ours == pytest.approx(theirs, rel=1e-4), name
