"""Norms and gated MLPs compiled module by module (``train.compile_regions``): what a card does between products.

A norm is six operators, the gate of an MLP two, each reading and writing all hidden states; compiled they are one each.
The rest of a layer stays as it is: attention is one call already, and a whole layer would be compiled again for every
packed row. Layers share their code, so it is compiled once for all of them, for any number of tokens; checkpointing, hooks
of sharding and names of parameters do not change.
"""

import logging
from typing import Any

import torch
from torch import nn

from dpo_core.contract.back_ends import ShardingKind
from dpo_core.contract.compiled_regions import check_compiled_regions

log = logging.getLogger(__name__)

GATED = ({"gate_proj", "up_proj", "down_proj"}, {"w1", "w2", "w3"})  # transformers' names and OLMo-core's


def regions(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are compiled: RMS norms and MLPs with a gate, none inside another."""
    found = []
    for module in model.modules():
        linears = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
        if type(module).__name__.endswith("RMSNorm") or linears in GATED:
            found.append(module)
    return found


def compile_regions(model: nn.Module, backend: Any = "inductor") -> int:
    """Have the regions compiled when they first run, for any number of tokens. Returns how many there are."""
    found = regions(model)
    for module in found:
        module.compile(backend=backend, dynamic=True)
    log.info("%d norms and MLPs are compiled when they first run", len(found))
    return len(found)


def are_compiled(device: torch.device, sharding: ShardingKind) -> bool:
    """Return whether regions are compiled there: on a CPU nothing would be gained, and nothing is done. Raises
    ``ConfigError`` for what cannot work."""
    if device.type == "cpu":
        log.info("train.compile_regions is for cards: on this CPU nothing is compiled")
        return False
    check_compiled_regions(sharding, num_gpus=1)
    return True
