"""Whether a model that ranks share out would fit a card whole, for an evaluation, or the cards of a machine together.

Answers take a forward a token. Shared out, each of them gathers the whole model, and every rank gives the same answers: of
8B 16 GB a token. Whole, ranks answer prompts of their own, and wait for nobody. 70B, which no card holds, is 141 GB: by the
links within a machine that takes a third of a second on H100s, by the network between machines over two.
"""

import logging
import os

from accelerate import Accelerator

from dpo_core.contract.config import AdapterConfig
from dpo_core.contract.jobs import EvaluateJob, ReferenceJob
from dpo_core.contract.model_shape import ModelShape
from dpo_core.contract.quantities import ANSWERS_PER_BATCH
from dpo_core.contract.step_memory import StepMemory, arithmetic_of
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.engine.card_memory import USED_SHARE, left_on_card
from dpo_core.engine.choose import share_within_machines
from dpo_core.engine.distributed import by_every_rank
from dpo_core.model.attention import text_config
from dpo_core.model.forward import PairScorer

log = logging.getLogger(__name__)
OF_UNKNOWN_SHAPE = 0.5  # of the weights, taken for a forward of a model whose memory has no estimate


def share_for_scoring_within_machines(job: EvaluateJob | ReferenceJob, accelerator: Accelerator) -> None:
    """Share a step's models out among each machine's ranks, not among all machines', where its cards have room for two
    copies of the largest. All ranks decide and call it together, before a model is loaded. The numbers are the same."""
    sharding, ranks = job.sharding, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    left = left_on_card(accelerator.device)
    fits = left is not None and 2 * _bytes_in_files(job) <= left * ranks  # half is for what is computed
    found = by_every_rank(accelerator, lambda *_: (ranks, fits))
    whole_groups = accelerator.num_processes % ranks == 0 and ranks % sharding.tensor_degree == 0
    alike = whole_groups and all(one == (ranks, True) for one in found)
    if sharding.may_copy_by_machine and alike and 1 < ranks < accelerator.num_processes:
        log.info("the %d ranks of each machine share a copy of the model out", ranks)
        share_within_machines(sharding, accelerator, ranks)


def _bytes_in_files(job: EvaluateJob | ReferenceJob) -> int:
    """Of the largest model that the step loads, as its files hold it, or in float32 where it computes so."""
    models = [job.checkpoint] if isinstance(job, ReferenceJob) else [job.before, job.after]
    models += [job.reference_checkpoint] if isinstance(job, EvaluateJob) and job.reference_checkpoint else []
    sizes = [sum(file.stat().st_size for file in model.path.glob("*.safetensors")) for model in models]
    return max(sizes) * (2 if job.precision == "fp32" else 1)


def fits_whole(scorer: PairScorer, job: EvaluateJob, accelerator: Accelerator) -> bool:
    """Return whether every rank's card has room for all weights of a scorer, which are shared out, and for the job's
    forwards and answers; where ranks share matrices out, for all of its part of them. The same on every rank; all call it
    together. Never without cards, or where weights are offloaded.
    """
    left = left_on_card(accelerator.device)
    needed = bytes_whole(scorer, job)
    fits = left is not None and job.sharding.offload == "none" and needed <= USED_SHARE * left
    agreed = all(by_every_rank(accelerator, lambda *_: fits))
    if left is not None:
        how = "they are gathered once, and prompts are dealt out" if agreed else "they stay shared out"
        log.info("whole weights and what is computed with them take %.1f GiB: %s", needed / 2**30, how)
    return agreed


def bytes_whole(scorer: PairScorer, job: EvaluateJob) -> int:
    """Return the bytes of all weights as forwards gather them, and of the largest forward, keys and values of answers; of
    matrices that ranks share out to compute together, of this rank's part."""
    weights = sum(
        getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        for parameter in scorer.parameters()
    )
    shape = ModelShape.of(text_config(scorer.model).to_dict())
    if shape is None:
        return round((1 + OF_UNKNOWN_SHAPE) * weights)
    shape = shape.shared_by(job.sharding.tensor_degree)
    measured = [job.data, *([job.sets.data] if job.sets else [])]
    pairs = [PairDataset.open(data.path, "held_out").lengths.sum(axis=1) for data in measured]
    tokens = max(*(int(lengths.max(initial=0)) for lengths in pairs), job.evaluation.tokens_per_batch)
    frozen = AdapterConfig(kind="lora")  # weights are what an adapter's base is
    memory = StepMemory(shape, arithmetic_of(frozen, job.precision, job.sharding.kind), is_checkpointed=False)
    answers = tokens + ANSWERS_PER_BATCH * job.evaluation.max_new_tokens
    return weights + memory.forward_alone(tokens) + memory.keys_and_values(answers)
