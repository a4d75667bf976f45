"""The back ends' names and what each process holds with them, torch-free. Their engines are in ``dpo_core.engine``.

Settings, plan, memory model and trainer all ask here: what a new one shares out is said once.
"""

from dataclasses import dataclass
from typing import Literal

ShardingKind = Literal["none", "zero1", "zero2", "zero3", "fsdp2"]
Offload = Literal["none", "optimizer", "optimizer_and_parameters"]
Part = Literal["moments", "gradients", "weights"]


@dataclass(frozen=True, slots=True)
class BackEnd:
    """``shares``: of what each process holds its part alone. ``offloads``: what may lie in the host's memory."""

    shares: tuple[Part, ...] = ()
    offloads: tuple[Offload, ...] = ("none",)
    is_deepspeed: bool = False

    @property
    def splits_weights(self) -> bool:
        """Whether no process holds all weights, so that every forward is one of all processes together."""
        return "weights" in self.shares


BACK_ENDS: dict[ShardingKind, BackEnd] = {
    "none": BackEnd(),
    "zero1": BackEnd(("moments",), ("none", "optimizer"), is_deepspeed=True),
    "zero2": BackEnd(("moments", "gradients"), ("none", "optimizer"), is_deepspeed=True),
    "zero3": BackEnd(
        ("moments", "gradients", "weights"),
        ("none", "optimizer", "optimizer_and_parameters"),
        is_deepspeed=True,
    ),
    "fsdp2": BackEnd(("moments", "gradients", "weights"), ("none", "optimizer_and_parameters")),
}
