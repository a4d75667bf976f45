"""The figures of ``benchmarks.opstream`` as a section of RESULTS."""

from collections.abc import Callable

AUDITED = {"1": (7056, 0.46), "16": (26_236, 0.61)}
"""Pairs -> kernels and share in products by the audit of commit f181ab4, whose recipe took one pair a forward."""
PRODUCTS_BAR, KERNELS_BAR = 0.75, 0.5
TEXT = """Nothing ran on a card for this: operators of forward, forward again and backward of 8B (`recipes/tulu3-8b.yaml`: 16
pairs of 1,030 tokens a card and forward) in FakeTensorMode, each priced by a roofline of an H100 (`benchmarks/opstream.py`).
Products: linears, head, attention. Calls are what the host does. Bars: at least 75 % of the time in products, half of the
kernels that an audit counted at commit f181ab4, when the recipe took one pair a forward. The recipe, as all that train whole
models, has `precision: bf16` with `sharding: fsdp2`, which gathers weights in bf16 and casts none: its row is the last.

"""
HEADER = ("", "pairs", "GPU, ms", "in products", "bar", "kernels", "bar", "calls", "`_to_copy` (ms)")


def rows(figures: dict, verdict: Callable[..., str]) -> list[tuple]:
    """Return a row for each way to hold weights and number of pairs. ``verdict``: see ``benchmarks.results``."""
    return [
        (
            held,
            pairs,
            f"{found['gpu_ms']:.0f}",
            f"{found['in_products']:.1%}",
            verdict(found["in_products"], PRODUCTS_BAR),
            f"{found['kernels']:,}",
            verdict(found["kernels"], KERNELS_BAR * AUDITED[pairs][0], at_most=True),
            f"{found['calls']:,}",
            f"{found['copies']:,} ({found['copies_ms']:.0f})",
        )
        for held, of_pairs in figures.items()
        for pairs, found in of_pairs.items()
    ]


def largest(figures: dict, num_pairs: str) -> str:
    """Return a sentence a way to hold weights: what takes the time beside products."""
    return "".join(
        f"{held}, {num_pairs} pairs, ms: "
        + ", ".join(f"`{name}` {value:.0f}" for name, value in of_pairs[num_pairs]["largest_ms"].items())
        + ".\n\n"
        for held, of_pairs in figures.items()
    )
