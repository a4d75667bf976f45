"""``python -m tests.programs.counting_ranks train --job ...``: the step, and what one of its microbatches sends and keeps.

Writes ``counted-<rank>.json``: bytes that this rank's collectives gather and reduce in it, and bytes of bf16 copies of the
decoder layers' matrices that are there at the end of its forward.
"""

import json
import sys
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpo_core import __main__ as program
from dpo_core.data.pair_batch import PairBatch
from dpo_core.steps import train
from dpo_core.training.trainer import Trainer
from tests.programs.small_chunks import cut_logits

GATHERS, REDUCTIONS = ("allgather",), ("reduce_scatter", "allreduce")


class Counted(TorchDispatchMode):
    """Counts while it is entered; ``shapes`` are those of the matrices whose copies count."""

    def __init__(self, shapes: set[tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes
        self.gathered = self.reduced = self.kept = 0
        self.reduced_in: set[str] = set()
        self.copies: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self._count(func.__name__, args)
        for tensor in tree_leaves(out):
            if (
                isinstance(tensor, Tensor)
                and tensor.dtype == torch.bfloat16
                and tuple(tensor.shape) in self.shapes
            ):
                storage = tensor.untyped_storage()
                self.copies[storage._cdata] = weakref.ref(storage)
        return out

    def _count(self, name: str, args: tuple) -> None:
        largest = max((tensor for tensor in tree_leaves(args) if isinstance(tensor, Tensor)), key=_bytes)
        if any(kind in name for kind in GATHERS):
            self.gathered += _bytes(largest)
        elif any(kind in name for kind in REDUCTIONS):
            self.reduced += _bytes(largest)
            self.reduced_in.add(str(largest.dtype))

    @property
    def bytes_of_copies(self) -> int:
        alive = (storage() for storage in self.copies.values())
        return sum(storage.nbytes() for storage in alive if storage is not None)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def layer_shapes(trainer: Trainer) -> set[tuple[int, ...]]:
    """Shapes of the matrices of decoder layers, and of their transposes."""
    weights = {
        tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in trainer.engine.scorer.named_parameters()
        if ".layers." in name
    }
    matrices = {shape for shape in weights if len(shape) == 2}
    return matrices | {shape[::-1] for shape in matrices}


def main() -> int:
    """Count in the first microbatch that can be."""
    cut_logits()
    forward_backward, check_fit = Trainer.forward_backward, train.check_fit
    counted: list[Counted] = []

    def watched(trainer: Trainer, batch: PairBatch, *arguments: Any) -> Tensor:
        shapes = layer_shapes(trainer)
        sides = {side for shape in shapes for side in shape}
        # As many tokens as a matrix has rows: hidden states would look like a copy of it.
        if counted or not trainer.is_set_up or sides & {batch.ids_RT.numel(), batch.predictor_N.numel()}:
            return forward_backward(trainer, batch, *arguments)
        counter, scores = Counted(shapes), trainer.engine.scores
        counted.append(counter)

        def scores_then_look(batch: Any) -> Any:
            result = scores(batch)
            counter.kept = counter.bytes_of_copies
            return result

        trainer.engine.scores = scores_then_look
        with counter:
            sums = forward_backward(trainer, batch, *arguments)
        trainer.engine.scores = scores
        found = {name: getattr(counter, name) for name in ("gathered", "reduced", "kept")}
        path = trainer.job.out_dir / f"counted-{trainer.accelerator.process_index}.json"
        path.write_text(json.dumps(found | {"reduced_in": sorted(counter.reduced_in)}))
        return sums

    def checked(trainer: Trainer) -> dict[str, float]:
        figures = check_fit(trainer)
        trainer.is_set_up = True
        return figures

    Trainer.is_set_up = False
    Trainer.forward_backward, train.check_fit = watched, checked
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
