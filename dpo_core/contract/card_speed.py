"""What cards multiply matrices with at most, by the name that the driver gives them. Torch-free."""

import re

PEAKS = {
    "a100": 312e12,
    "b200": 2250e12,
    "h100 pcie": 756e12,
    "h100 nvl": 835e12,
    "h100": 989e12,
    "h200": 989e12,
    "l40s": 362e12,
    "l4": 121e12,
    "rtx 4090": 165e12,
}
"""Words of a card's name -> floating-point operations a second, dense bf16 with fp32 sums, by the maker's data sheet. The
first that fits counts."""
OTHER_CHIPS = {"laptop", "mobile", "max"}  # words of cards that share a name with a faster one


def bf16_peak(name: str) -> float | None:
    """Return the peak of a card that the driver calls so (``NVIDIA H100 80GB HBM3``); None if it is not known."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    if OTHER_CHIPS & set(words):
        return None
    return next((peak for known, peak in PEAKS.items() if set(known.split()) <= set(words)), None)
