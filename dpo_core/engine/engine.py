"""What the training loop asks of a back end. One class each: plain (one process or DDP), master (the same with
bf16 weights), DeepSpeed ZeRO, FSDP2.

The loop gives a loss that is a sum over this rank's pairs divided by the pairs of the whole global batch; an engine's
``backward`` and ``step`` see to it that the gradient is the sum over ranks and microbatches, so every pair weighs the
same on every back end. A checkpoint holds tensors by name, each rank's ranges of them: a run may go on with another number
of processes or another back end.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor

from dpo_core.data.pair_batch import PairBatch
from dpo_core.engine.stored_tensor import StoredTensor
from dpo_core.model.forward import PairScorer, SequenceScores


class Engine(Protocol):
    """A back end that holds policy and optimizer. Every method is called by all ranks together."""

    accelerator: Accelerator
    scorer: PairScorer  # the policy, for forwards without gradients

    def scores(self, batch: PairBatch) -> SequenceScores:
        """Run the forward of a microbatch on this rank's device, with gradients."""
        ...

    def accumulate(self, last: bool) -> AbstractContextManager:
        """Hold around one microbatch; ranks exchange gradients where it is the ``last`` of a step."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's part of the global batch's mean loss."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip to the configured norm, update, forget the gradient. -> the norm before clipping; if it is not finite the
        policy is not to be used any more"""
        ...

    def discard_gradients(self) -> None:
        """Forget accumulated gradients; nothing else changes."""
        ...

    def model_tensors(self) -> dict[str, StoredTensor]:
        """Return every parameter and persistent buffer once; tied weights appear under their first name. What a ``step``
        changes, it changes in the memory that these name."""
        ...

    def optimizer_tensors(self) -> dict[str, StoredTensor]:
        """Return ``<parameter>::<key>`` -> optimizer state, as torch's AdamW has it: exp_avg, exp_avg_sq, step."""
        ...

    def spread_weights(self) -> None:
        """Bring all other copies of the weights in line, after something else than ``step`` has changed the memory that
        ``model_tensors`` names."""
        ...

    def load(self, folder: Path) -> None:
        """Restore policy and optimizer from a verified checkpoint, whatever back end wrote it. Raises ``StoreError``."""
        ...
