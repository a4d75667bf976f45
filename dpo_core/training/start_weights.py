"""The policy's start beside the policy, for a divergence that is measured while it is trained.

A second model would not do: ZeRO knows of one a process, and its layers would have to be shared out once more. The start is
the same model with other values, so each rank keeps its own part of them in the host's memory (4 bytes a parameter that it
holds) and exchanges them with the policy's for a few forwards. Copies are exact, and so is what training goes on with.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import torch

from dpo_core.contract.jobs import TrainJob
from dpo_core.engine.engine import Engine
from dpo_core.model.adapter import adapter_disabled

AsReference = Callable[
    [], AbstractContextManager
]  # while it is entered, the engine's scorer is the reference


class StartWeights:
    """The values of an engine's model at the moment when this is made. Every method is called by all ranks together."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._others = {name: _on_host(tensor.held) for name, tensor in engine.model_tensors().items()}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the engine's scorer compute with these values inside."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in self._engine.model_tensors().items():
            here = _on_host(tensor.held)
            tensor.held.copy_(self._others[name])
            self._others[name] = here
        self._engine.spread_weights()


def _on_host(held: torch.Tensor) -> torch.Tensor:
    return held.detach().to("cpu", copy=True)


def as_reference(job: TrainJob, engine: Engine, is_start: bool) -> AsReference | None:
    """Return what makes the policy's scorer its reference, where the divergence is to be measured while training; called
    before anything is trained or restored. None where it is not, or where the reference is not the policy's start."""
    if not (job.evaluation.measures_kl_while_training and is_start):
        return None
    if job.adapter.kind != "none":
        return partial(adapter_disabled, engine.scorer.model)
    return StartWeights(engine).in_place
