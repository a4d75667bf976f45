"""Between a microbatch's forward and the end of its backward the host asks for no value of what a card computes: it would
wait for all that the card has yet to do, and the card then for the host.

On a CPU nothing waits, so what would is told by its operators, and by the calls that have none there. Of padded rows, which
no model takes that can have others, transformers asks whether one has padding as it makes their mask, before any layer.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.progress import Progress
from dpo_core.steps.train import set_up
from dpo_core.training.stop_request import StopRequest

aten = torch.ops.aten
# item(), float(), bool(), tolist() of one; shapes that depend on values; comparisons whose answer is Python's.
WAITING = {
    *(aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default),
    *(aten.nonzero.default, aten.masked_select.default, aten.repeat_interleave.Tensor),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default),
}


class Waits(TorchDispatchMode):
    """Notes what a card's host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        self.seen += 1
        by_mask = func is aten.index.Tensor and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if func in WAITING or by_mask:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Notes copies of other tensors to the host than those that are there."""

    def __init__(self, *on_host: Tensor) -> None:
        super().__init__()
        self.found: list[str] = []
        self.on_host = on_host

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.cpu) and not any(args[0] is one for one in self.on_host):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["packed", "prefix_sharing"])
@pytest.mark.parametrize("loss", [LossConfig(name="dpo", wpo_weighting=True, rpo_alpha=0.1), "aot"])
def test_no_microbatch_makes_the_host_wait(stage, tmp_path, layout, loss):
    job = stage.train_job(tmp_path, loss, per_device=2, forward=layout, gradient_checkpointing=True)
    trainer = set_up(job, Progress("train", sink=lambda event: None), StopRequest())
    assert trainer.layout == layout
    rows, batches = trainer.step_batches(0)
    assert len(batches) == 2
    losses = trainer.step_loss.begin(trainer.engine, rows, batches, 0.0)
    for number, batch in enumerate(batches):
        copies = Copies(batch.row_B, batch.parts_B3)
        with trainer.engine.accumulate(last=number == 1), Waits() as waits, copies:
            trainer.forward_backward(batch, losses, rows)
        assert waits.found + copies.found == []
        assert waits.seen > 100


def test_what_would_wait_is_seen():
    values = torch.arange(3.0)
    for ask in (
        lambda: float(values[0]),
        lambda: bool((values > 1).any()),
        lambda: values[0].item(),
        lambda: values[values > 1],
        lambda: values.tolist(),
        lambda: (2 * values).cpu(),
    ):
        with Waits() as waits, Copies() as copies:
            ask()
        assert waits.found + copies.found, ask
    with Copies(values) as copies:
        values.tolist()
    assert copies.found == []
