"""Which pairs form which batch, as pure functions of seed and step: what makes resume and any world size exact.

Nothing here is state. The order of epoch 0 is the mixture's own (the mixer shuffled it with its seed); later epochs are
permuted by (seed, epoch).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np

from dpo_core.contract.config import ForwardLayout
from dpo_core.contract.jobs import BatchPlan


def forward_tokens(lengths_N2: np.ndarray, prefix_lengths_N: np.ndarray, layout: ForwardLayout) -> np.ndarray:
    """Return tokens that one pair occupies in a forward of this layout, int [N]."""
    if layout == "padded":
        return 2 * lengths_N2.max(axis=1, initial=0)
    return lengths_N2.sum(axis=1) - prefix_lengths_N


def real_tokens(lengths_N2: np.ndarray, prefix_lengths_N: np.ndarray, layout: ForwardLayout) -> np.ndarray:
    """Return tokens of each pair that a forward of this layout computes, padding left out, int [N]."""
    return lengths_N2.sum(axis=1) - (0 if layout == "padded" else prefix_lengths_N)


def steps_per_epoch(num_rows: int, global_pairs: int) -> int:
    """Return optimizer steps that see every row once; the last one's batch may be smaller."""
    return -(-num_rows // global_pairs)


def num_steps(num_rows: int, global_pairs: int, num_epochs: int, max_steps: int | None) -> int:
    """Return optimizer steps of a run; the last batch of an epoch may be smaller."""
    steps = num_epochs * steps_per_epoch(num_rows, global_pairs)
    return steps if max_steps is None else min(steps, max_steps)


def step_rows(step: int, num_rows: int, global_pairs: int, seed: int) -> np.ndarray:
    """Return row numbers of optimizer step ``step`` (0-based), int64 [<= global_pairs]."""
    epoch, position = divmod(step, steps_per_epoch(num_rows, global_pairs))
    return _epoch_order(num_rows, epoch, seed)[position * global_pairs : (position + 1) * global_pairs]


@lru_cache(maxsize=1)  # permuting a million rows takes 20 ms: once an epoch, not once a step
def _epoch_order(num_rows: int, epoch: int, seed: int) -> np.ndarray:
    order = np.arange(num_rows) if epoch == 0 else np.random.default_rng([seed, epoch]).permutation(num_rows)
    order.flags.writeable = False
    return order


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Rows of one forward on one rank; weight 0 marks a filler that only keeps the ranks in step."""

    rows: tuple[int, ...]
    weights: tuple[float, ...]


def cut_for_rank(
    rows: np.ndarray,
    lengths: np.ndarray,
    plan: BatchPlan,
    tokens_per_forward: int,
    rank: int,
    layout: ForwardLayout = "prefix_sharing",
) -> list[Microbatch]:
    """Return this rank's microbatches of a global batch, every rank getting equally many and about as many tokens.

    A microbatch has at most ``plan.per_device_pairs`` pairs, and fewer where they are so long that they would exceed
    ``tokens_per_forward`` (one pair at least). Pairs of like length go together, so padding is rare; where nothing is
    padded, forwards get near equal tokens instead, so that the largest, which memory must hold, is small. The sum over
    pairs, and with it the gradient, is the same however a batch is cut. ``lengths`` [len(rows)] are tokens per pair.
    """
    by_rank = _cuts_by_rank(lengths, plan, tokens_per_forward, layout)
    cuts = [Microbatch(tuple(rows[cut].tolist()), (1.0,) * len(cut)) for cut in by_rank[rank]]
    filler = Microbatch((int(rows[np.argmin(lengths)]),), (0.0,))
    return cuts + [filler] * (max(map(len, by_rank)) - len(cuts))


def _cuts_by_rank(
    lengths: np.ndarray, plan: BatchPlan, tokens_per_forward: int, layout: ForwardLayout
) -> list[list[list[int]]]:
    """Places of each rank's microbatches. A rank with fewer splits its largest while it can: that adds no work."""
    shares = deal(lengths, plan.num_processes)
    if layout == "packed":
        by_rank = [
            balanced_batches(share, lengths, tokens_per_forward, plan.per_device_pairs) for share in shares
        ]
    else:
        by_rank = [
            batches_by_tokens(share, lengths, tokens_per_forward, plan.per_device_pairs, layout)
            for share in shares
        ]
    rounds = max(map(len, by_rank))
    for cuts in by_rank:
        while len(cuts) < rounds and (splittable := [cut for cut in cuts if len(cut) > 1]):
            largest = max(splittable, key=lambda cut: batch_tokens(lengths[cut], layout))
            at = cuts.index(largest)
            cuts[at : at + 1] = [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    return by_rank


def share_of_rank(
    batches: Sequence[Sequence[int]], rank: int, num_ranks: int, in_step: bool
) -> list[Microbatch]:
    """Return this rank's batches of a pass without gradients. ``in_step``: every rank gets equally many, the last being
    repeated with weight 0 where they run out, as ranks that hold a part of each weight can only compute together."""
    mine = [Microbatch(tuple(rows), (1.0,) * len(rows)) for rows in batches[rank::num_ranks]]
    left_out = in_step and rank >= len(batches) % num_ranks > 0
    return [*mine, Microbatch(tuple(batches[-1]), (0.0,) * len(batches[-1]))] if left_out else mine


def deal(lengths: np.ndarray, num_ranks: int) -> list[list[int]]:
    """Return each rank's places in ``lengths``, longest first; their tokens differ between ranks by the longest pair at
    most.

    Dealt in rounds of one pair a rank, a round's longest to the rank with the fewest tokens so far: within a round a
    rank that was behind gains on one that was ahead, so the gap never exceeds that of the pairs in some one round.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    longest_first = np.argsort(-lengths, kind="stable").tolist()
    for start in range(0, len(longest_first), num_ranks):
        behind_first = sorted(range(num_ranks), key=tokens.__getitem__)
        for rank, place in zip(
            behind_first, longest_first[start : start + num_ranks], strict=False
        ):  # last round: fewer
            shares[rank].append(place)
            tokens[rank] += int(lengths[place])
    return shares


def batch_tokens(lengths: np.ndarray, layout: ForwardLayout) -> int:
    """Return tokens that a forward of pairs of these lengths computes, padding included."""
    return int(lengths.sum()) if layout == "packed" else int(lengths.max()) * len(lengths)


def batches_by_tokens(
    order: Sequence[int],
    lengths: np.ndarray,
    tokens_per_batch: int,
    rows_per_batch: int | None = None,
    layout: ForwardLayout = "prefix_sharing",
) -> list[list[int]]:
    """Cut ``order`` into runs whose size in a forward stays within ``tokens_per_batch``; one row at least,
    ``rows_per_batch`` at most. The size is rows x longest, or the sum where rows are packed without padding."""
    batches: list[list[int]] = []
    size = longest = 0
    for row, length in zip(order, lengths[np.asarray(order, dtype=np.int64)].tolist(), strict=True):
        longest = max(longest, length)
        size = size + length if layout == "packed" else longest * (len(batches[-1]) + 1 if batches else 1)
        if not batches or len(batches[-1]) == rows_per_batch or size > tokens_per_batch:
            batches.append([row])
            size = longest = length
        else:
            batches[-1].append(row)
    return batches


def balanced_batches(
    longest_first: Sequence[int], lengths: np.ndarray, tokens_per_batch: int, rows_per_batch: int
) -> list[list[int]]:
    """Return rows in batches of near equal sums of lengths, as few as bounds allow or nearly so; bounds as
    ``batches_by_tokens``.

    The longest row goes to the emptiest batch that has room for it (longest processing time first, Graham 1969).
    """
    total = int(lengths[np.asarray(longest_first, dtype=np.int64)].sum())
    fewest = max(
        -(-len(longest_first) // rows_per_batch), min(-(-total // tokens_per_batch), len(longest_first))
    )
    batches: list[list[int]] = [[] for _ in range(fewest)]
    sizes = [0] * fewest
    for row in longest_first:
        length = int(lengths[row])
        room = [
            at
            for at, batch in enumerate(batches)
            if not batch or (len(batch) < rows_per_batch and sizes[at] + length <= tokens_per_batch)
        ]
        if not room:
            room = [len(batches)]
            batches.append([])
            sizes.append(0)
        at = min(room, key=sizes.__getitem__)
        batches[at].append(row)
        sizes[at] += length
    return batches


def largest_microbatch(
    lengths_N: np.ndarray,
    plan: BatchPlan,
    tokens_per_forward: int,
    seed: int,
    total_steps: int,
    layout: ForwardLayout = "prefix_sharing",
) -> tuple[int, ...]:
    """Return rows of the microbatch that computes the most tokens in a whole run, on any rank: what memory must be
    enough for.

    ``lengths_N`` are ``forward_tokens`` of all rows. Among equals the one with the longest row, whose attention needs
    most. All steps are cut as the run will cut them, at a few microseconds a pair.
    """
    largest, size = (), (0, 0)
    for step in range(total_steps):
        rows = step_rows(step, len(lengths_N), plan.global_pairs, seed)
        lengths = lengths_N[rows]
        longest = int(lengths.max())
        at_most = min(longest * plan.per_device_pairs, max(longest, tokens_per_forward))
        if (at_most, longest) <= size:
            continue
        for cut in chain.from_iterable(_cuts_by_rank(lengths, plan, tokens_per_forward, layout)):
            found = batch_tokens(lengths[cut], layout), int(lengths[cut].max())
            if found > size:
                largest, size = tuple(rows[cut].tolist()), found
    return largest
