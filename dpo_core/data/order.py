"""Which pairs form which batch, as pure functions of seed and step: what makes resume and any world size exact.

Nothing here is state. The order of epoch 0 is the mixture's own (the mixer shuffled it with its seed); later epochs are
permuted by (seed, epoch).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpo_core.config import ForwardLayout
from dpo_core.jobs import BatchPlan


def forward_tokens(lengths_N2: np.ndarray, prefix_lengths_N: np.ndarray, layout: ForwardLayout) -> np.ndarray:
    """Tokens that one pair occupies in a forward of this layout, int [N]."""
    if layout == "prefix_sharing":
        return lengths_N2.sum(axis=1) - prefix_lengths_N
    return 2 * lengths_N2.max(axis=1, initial=0)


def num_steps(num_rows: int, global_pairs: int, num_epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a run; the last batch of an epoch may be smaller."""
    steps = num_epochs * -(-num_rows // global_pairs)
    return steps if max_steps is None else min(steps, max_steps)


def step_rows(step: int, num_rows: int, global_pairs: int, seed: int) -> np.ndarray:
    """Row numbers of optimizer step ``step`` (0-based), int64 [<= global_pairs]."""
    steps_per_epoch = -(-num_rows // global_pairs)
    epoch, position = divmod(step, steps_per_epoch)
    order = np.arange(num_rows) if epoch == 0 else np.random.default_rng([seed, epoch]).permutation(num_rows)
    return order[position * global_pairs : (position + 1) * global_pairs]


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Rows of one forward on one rank; weight 0 marks a filler that only keeps the ranks in step."""

    rows: tuple[int, ...]
    weights: tuple[float, ...]


def cut_for_rank(rows: np.ndarray, lengths: np.ndarray, plan: BatchPlan, tokens_per_forward: int,
                 rank: int) -> list[Microbatch]:
    """This rank's microbatches of a global batch, every rank getting equally many.

    A microbatch has at most ``plan.per_device_pairs`` pairs, and fewer where they are so long that padded they would
    exceed ``tokens_per_forward`` (one pair at least). Pairs of like length go together, so padding is rare; the sum over
    pairs, and with it the gradient, is the same however a batch is cut. ``lengths`` [len(rows)] are tokens per pair.
    """
    longest_first = np.argsort(-lengths, kind="stable").tolist()
    cuts = [rows[places].tolist()
            for places in batches_by_tokens(longest_first, lengths, tokens_per_forward, plan.per_device_pairs)]
    mine = [Microbatch(tuple(cut), (1.0,) * len(cut)) for cut in cuts[rank :: plan.num_processes]]
    rounds = -(-len(cuts) // plan.num_processes)
    filler = Microbatch((int(rows[longest_first[-1]]),), (0.0,))
    return mine + [filler] * (rounds - len(mine))


def batches_by_tokens(order: Sequence[int], lengths: np.ndarray, tokens_per_batch: int,
                      rows_per_batch: int | None = None) -> list[list[int]]:
    """Cut ``order`` into runs whose padded size (rows x longest) stays within ``tokens_per_batch``; one row at least,
    ``rows_per_batch`` at most."""
    batches: list[list[int]] = []
    longest = 0
    for row in order:
        longest = max(longest, int(lengths[row]))
        full = not batches or len(batches[-1]) == rows_per_batch or longest * (len(batches[-1]) + 1) > tokens_per_batch
        if full:
            batches.append([row])
            longest = int(lengths[row])
        else:
            batches[-1].append(row)
    return batches
