"""What is forked: steps, and the processes in which Prefect's worker runs flows. What each of their parents has imported,
and how a child makes up for what an interpreter's own start would have read in its environment.
"""

import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Kind:
    """``at_once``: whether it imports before it is asked first, as most of the tests' workers start such processes."""

    imported: tuple[str, ...]
    take_environment: Callable[[], None]
    at_once: bool


def _of_a_step() -> None:
    import numpy
    import torch

    from tests.programs.small_chunks import SMALL_CHUNKS_SITE, cut_logits

    # Its sitecustomize comes second, and changes what is imported after it.
    if str(SMALL_CHUNKS_SITE) in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        cut_logits()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    numpy.random.seed()


def _of_a_run() -> None:
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    refresh_global_settings_context()
    setup_logging(incremental=False)


# Seconds, in the environments that have the library.
ELSEWHERE = {"olmo_core": "dpo_core.model.olmo_core", "lm_eval": "dpo_core.steps.benchmark"}
KINDS = {
    "steps": Kind(
        (
            "accelerate.commands.launch",
            "torch.distributed.run",
            "dpo_core.steps.train",
            "dpo_core.steps.reference",
            "dpo_core.steps.evaluate",
            "dpo_core.steps.export",
            "dpo_core.steps.answer",
            "dpo_core.steps.judge",
            "dpo_core.judging.reward_model",
            "dpo_core.steps.mix",
            "dpo_core.steps.convert",
            "dpo_core.engine.plain",
            "dpo_core.contract.environment",
            "transformers.models.llama.modeling_llama",
            "transformers.models.auto.modeling_auto",
            "pandas",
            "pyarrow.compute",
            "deepspeed",
            # Which DeepSpeed imports once a model is handed to it, and torch's compiler with it.
            "deepspeed.runtime.zero.muon.muon_optimizer",
            *(module for library, module in ELSEWHERE.items() if find_spec(library)),
        ),
        _of_a_step,
        at_once=True,
    ),
    "runs": Kind(
        (
            "prefect.runner._workspace_supervisor",
            "prefect.engine",
            "prefect.flow_engine",
            "prefect.deployments.steps.pull",
            "flows.dpo_stage",
            "flows.dpo_sweep",
            "flows.maintenance",
            "flows.post_training",
            "flows.quick_stage",
        ),
        _of_a_run,
        at_once=False,
    ),
}


def take_environment(kind: Kind, environment: dict[str, str]) -> None:
    """Have it, with what an interpreter's own start and its imports would have made of it."""
    os.environ.clear()
    os.environ.update(environment)
    for folder in reversed(environment.get("PYTHONPATH", "").split(os.pathsep)):
        if folder and folder not in sys.path:
            sys.path.insert(1, folder)
    random.seed()
    kind.take_environment()
