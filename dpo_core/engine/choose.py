"""The job's sharding -> the engine. The one place that knows them all."""

from accelerate import Accelerator

from dpo_core.config import OptimConfig
from dpo_core.engine.engine import Engine
from dpo_core.engine.plain import PlainEngine
from dpo_core.model.forward import PairScorer


def start_engine(accelerator: Accelerator, scorer: PairScorer, optim: OptimConfig) -> Engine:
    """Hand a loaded scorer to its back end, with a new optimizer."""
    return PlainEngine.start(accelerator, scorer, optim)
