"""PyTorch's FSDP2 (``fully_shard``) through accelerate, on cards and on CPU: weights, gradients and moments shared out.

Every parameter is a DTensor split along its first dimension; a decoder layer is gathered for its forward and its backward,
embeddings and head for the whole forward and backward. Gradients are exchanged in every microbatch: kept whole until the
step's last one they would take as much memory as the weights do unshared. With a degree, ranks form groups of so many
neighbours, each with a copy of its own (HSDP): weights are gathered within a group, gradients summed over all.

With a tensor degree neighbours compute each forward together (``dpo_core.model.tensor_parallel``): each has its part of the
matrices as a model of its own, which FSDP2 shares out over the processes that have the same part.

bf16 means that what is gathered is bf16, of fp32 parts that the optimizer updates, and that gradients are reduced in fp32:
8 bytes a parameter and microbatch on the wire, where fp32 weights under autocast take 12 and a cast at every use. What is
not trained has no update to be exact for: its parts are bf16 themselves.
"""

import contextlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from dpo_core.contract.checkpoint_files import RUN_OPTIMIZER, RUN_WEIGHTS
from dpo_core.contract.config import OptimConfig
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import Sharding
from dpo_core.data.pair_batch import PairBatch
from dpo_core.engine.agreed_unread import agreed_unread
from dpo_core.engine.checkpoint import stored_tensors
from dpo_core.engine.distributed import data_rank
from dpo_core.engine.frozen import hold_in_half
from dpo_core.engine.fsdp_mesh import replicas_of, set_replicas, set_together, sharing_groups, tensor_ranks
from dpo_core.engine.meeting import meet
from dpo_core.engine.optim import build_optimizer, create_moments, set_learning_rate
from dpo_core.engine.plain import trainable
from dpo_core.engine.stored_tensor import StoredTensor, fill_from, whole
from dpo_core.engine.tensor_gradients import clip_shared
from dpo_core.model.forward import PairScorer, SequenceScores
from dpo_core.model.tensor_parallel import Division, TensorShare, share_tensors
from dpo_core.model.tensor_ranks import TensorRanks

# The model's own code casts between layers; inputs that are exact (a mask, angles of positions) stay so.
IN_HALF = MixedPrecisionPolicy(
    param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
)


def start_fsdp_accelerator(sharding: Sharding, arguments: dict[str, Any], on_cpu: bool) -> Accelerator:
    """Return the accelerator of an FSDP2 run. Raises ``ConfigError`` if accelerate took another back end.

    accelerate drops the plugin without a word where there is no card, though torch's FSDP2 itself runs on a CPU; there it
    is put back.
    """
    if on_cpu:
        os.environ.pop("ACCELERATE_USE_CPU", None)
    if sharding.offload != "none":
        os.environ["FSDP_OFFLOAD_PARAMS"] = (
            "true"  # accelerate then starts gloo beside nccl, for what lies on the CPU
        )
    offload = CPUOffloadPolicy(pin_memory=not on_cpu) if sharding.offload != "none" else None
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_offload=offload,
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    replicas = replicas_of(sharding)
    if not on_cpu and sharding.tensor_degree == 1:
        arguments = {**arguments, "parallelism_config": replicas}
    accelerator = Accelerator(fsdp_plugin=plugin, **arguments)
    if not dist.is_initialized() or not (on_cpu or accelerator.is_fsdp2):
        raise ConfigError(
            f"compute.sharding is fsdp2 but accelerate started {accelerator.distributed_type.value}. Start "
            "the step with `accelerate launch` and without a user config file."
        )
    if on_cpu:
        accelerator.state.fsdp_plugin = plugin
        if replicas and sharding.tensor_degree == 1:  # accelerate refuses them on a CPU, as it does FSDP
            set_replicas(accelerator, replicas)
        for state in (
            accelerator.state,
            PartialState(),
        ):  # the second decides whether ranks wait and sum at all
            state.distributed_type = DistributedType.FSDP
    if sharding.tensor_degree > 1:
        set_together(accelerator, sharding)
    return accelerator


@dataclass
class FsdpEngine:
    """See ``Engine``."""

    accelerator: Accelerator
    scorer: PairScorer
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    @classmethod
    def start(cls, accelerator: Accelerator, scorer: PairScorer, optim: OptimConfig) -> "FsdpEngine":
        """Share a loaded scorer out; rank 0's weights count."""
        share_weights(accelerator, scorer)
        optimizer = build_optimizer(scorer.parameters(), optim)
        create_moments(optimizer)
        return cls(accelerator, scorer, optimizer, optim.max_grad_norm)

    def scores(self, batch: PairBatch) -> SequenceScores:
        return self.scorer(batch)

    def accumulate(self, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        # FSDP averages gradients over ranks, so a rank's sum is scaled up by the number of ranks.
        self.accelerator.backward(loss * data_rank(self.accelerator)[1])

    def step(self, learning_rate: float) -> float:
        set_learning_rate(self.optimizer, learning_rate)
        if share := TensorShare.of(self.scorer.model):
            norm = clip_shared(self.scorer.model, share, self.max_grad_norm)
        else:
            every = nn.utils.clip_grad_norm_(trainable(self.scorer), self.max_grad_norm, foreach=True)
            norm = float(cast(DTensor, every).full_tensor())
        self.optimizer.step()
        self.discard_gradients()
        return norm

    def discard_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def model_tensors(self) -> dict[str, StoredTensor]:
        return {name: self._stored(name, tensor.detach()) for name, tensor in self._parts().items()}

    def optimizer_tensors(self) -> dict[str, StoredTensor]:
        return {
            f"{name}::{key}": self._stored(name, value)
            for name, parameter in self._parts().items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def spread_weights(self) -> None:
        pass  # there is no other copy

    def load(self, folder: Path) -> None:
        fill_from(folder, RUN_WEIGHTS, self.model_tensors())
        fill_from(folder, RUN_OPTIMIZER, self.optimizer_tensors())

    def _stored(self, name: str, tensor: Tensor) -> StoredTensor:
        if isinstance(tensor, DTensor):
            return _part(tensor, TensorShare.of(self.scorer.model), name)
        return whole(tensor, self.accelerator.process_index, self.accelerator.num_processes)

    def _parts(self) -> dict[str, Tensor]:
        """What a checkpoint holds, as this rank's parts: after a forward without backward some would still be whole."""
        for module in self.scorer.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return stored_tensors(self.scorer.model)


def _part(tensor: DTensor, share: TensorShare | None, name: str) -> StoredTensor:
    """Rows as FSDP2 deals them out: equally many to each rank, fewer or none to the last ones; the same rows to ranks that
    are replicas of each other. Of what neighbours share out, rows of this one's rows or of its columns."""
    mesh, first, copy, copies = tensor.device_mesh, 0, 0, 1
    for dimension, placement in enumerate(tensor.placements):
        number, ranks = mesh.get_local_rank(dimension), mesh.size(dimension)
        if placement.is_shard(0):
            assert not first  # one sharded dimension
            first = min(number * -(-tensor.shape[0] // ranks), tensor.shape[0])
        else:
            assert placement.is_replicate()
            copy, copies = copy * ranks + number, copies * ranks
    shape, columns, gather = list(tensor.shape), None, tensor.full_tensor
    if share:
        rank, size = share.ranks.rank, share.ranks.size
        if (cut := share.cuts.get(name)) is None:
            copy, copies = copy * size + rank, copies * size
        else:
            gather = partial(_joined, tensor, share.ranks, cut)
            bounds = share.ranks.part(cut.shape[cut.dimension])
            first, columns = (first + bounds[0], None) if cut.dimension == 0 else (first, bounds)
            shape = list(cut.shape)
    start = first * torch.Size(shape[1:]).numel() + (columns[0] if columns else 0)
    held = tensor.to_local()
    return StoredTensor(tuple(shape), tensor.dtype, held, gather, start, copy, copies, columns)


def _joined(tensor: DTensor, ranks: TensorRanks, cut: Division) -> Tensor:
    return ranks.joined(tensor.full_tensor(), cut.dimension, cut.shape[cut.dimension])


@torch.no_grad()
def share_weights(accelerator: Accelerator, scorer: PairScorer) -> None:
    """Leave this rank its part of every weight, in place. What the checkpoint's files hold is read from there, by every rank
    its own part; of anything else rank 0's values count and are sent one weight at a time."""
    unread, scorer.is_split = agreed_unread(accelerator, scorer.model), True
    plugin = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    if scorer.precision == "bf16":
        hold_in_half(scorer.parameters(), have_values=accelerator.is_main_process and not unread)
        scorer.has_half_weights = True
        plugin.mixed_precision_policy = IN_HALF
    whole_here = {name: parameter.detach() for name, parameter in scorer.model.named_parameters()}
    ranks = tensor_ranks(accelerator)
    share = share_tensors(scorer.model, ranks) if ranks else None
    if (
        share_out := getattr(scorer.model, "share_out", None)
    ) is not None:  # OLMo-core's Transformer has its own way
        share_out(sharing_groups(accelerator), half=scorer.has_half_weights)
    else:
        plugin.transformer_cls_names_to_wrap = list(scorer.model._no_split_modules or ())
        fsdp2_prepare_model(accelerator, scorer)
    for name, parameter in scorer.model.named_parameters():
        value = whole_here.pop(name)
        part = cast(DTensor, parameter.detach())
        stored = _part(part, share, name)
        if not (unread and unread.fill(name, stored.held, stored.start, stored.columns)):
            value = value.to(accelerator.device)
            dist.broadcast(value, 0)
            stored.take(value)
    if unread:
        for name, buffer in scorer.model.named_buffers():
            unread.fill(name, buffer)
        unread.slices.close()
        meet(accelerator)


def gather_ends(scorer: PairScorer) -> None:
    """Make embeddings and head whole for calls of the model by itself, where the scorer's own forward gathers them."""
    if isinstance(scorer, FSDPModule):  # what fully_shard makes of a module
        scorer.unshard()


def gather_whole(scorer: PairScorer) -> None:
    """Have every rank hold all weights from now on, in the numbers that forwards gather."""
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def share_for_scoring(accelerator: Accelerator, scorer: PairScorer) -> PairScorer:
    """Return a scorer for forwards without gradients, its weights shared out, in place."""
    scorer.requires_grad_(False)
    share_weights(accelerator, scorer)
    return scorer
