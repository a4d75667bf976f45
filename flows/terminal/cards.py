"""Cards that a plan can be made for: makers' data sheets, and what a host with them usually has. All decimal but memory.

``gib`` is what nvidia-smi shows in total. ``flops`` are dense bf16 with fp32 sums. ``link`` is what a card sends to the
others of its node in one direction (NVLink or PCIe), ``network`` its share of the node's network. Prices are of no offer: a
round figure of 2025 to be replaced by ``--price``.
"""

from dataclasses import dataclass

from dpo_core.contract.card_speed import PEAKS
from dpo_core.contract.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of card. Bytes a second but for ``flops``."""

    gib: float
    flops: float
    memory: float
    link: float
    network: float
    host_gib: float  # of the host's memory, for each card
    price: float  # US dollars an hour
    capability: tuple[int, int]  # CUDA compute capability


CARDS = {
    "a100-40": Card(39.4, PEAKS["a100"], 1.56e12, 300e9, 25e9, 85, 1.5, (8, 0)),
    "a100-80": Card(79.2, PEAKS["a100"], 2.04e12, 300e9, 25e9, 140, 2.0, (8, 0)),
    "b200-180": Card(178.0, PEAKS["b200"], 7.7e12, 900e9, 50e9, 250, 5.0, (10, 0)),
    "h100-80": Card(79.6, PEAKS["h100"], 3.35e12, 450e9, 50e9, 220, 3.0, (9, 0)),
    "h200-141": Card(140.4, PEAKS["h200"], 4.8e12, 450e9, 50e9, 220, 3.5, (9, 0)),
    "l4-24": Card(22.5, PEAKS["l4"], 0.30e12, 25e9, 3e9, 48, 0.7, (8, 9)),
    "l40s-48": Card(44.9, PEAKS["l40s"], 0.86e12, 25e9, 12e9, 96, 1.2, (8, 9)),
    "rtx4090-24": Card(23.9, PEAKS["rtx 4090"], 1.01e12, 25e9, 1e9, 64, 0.5, (8, 9)),
}


def card_of(name: str) -> Card:
    """Return a card by its name. Raises ``ConfigError`` that lists the known ones."""
    if name not in CARDS:
        raise ConfigError(f"--card {name} is not known. Known are {', '.join(CARDS)}.")
    return CARDS[name]
