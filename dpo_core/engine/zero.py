"""DeepSpeed ZeRO-1, 2 and 3 (Rajbhandari et al. 2020, arXiv 1910.02054) through accelerate, on cards and on CPU.

What each rank holds is a part of AdamW's moments (1), of the gradients as well (2), and of the weights as well (3).
The optimizer is torch's fused AdamW at every stage, offloaded or not: one set of numbers, and none of DeepSpeed's own
kernels, so nothing is compiled. bf16 is autocast inside the forward over fp32 weights. Stage 3 sends matrices as bf16 then,
which autocast makes of them anyway, and reduces gradients in fp32: 8 bytes a parameter and microbatch on the wire.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from dpo_core.contract.checkpoint_files import RUN_OPTIMIZER, RUN_WEIGHTS
from dpo_core.contract.config import OptimConfig
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.exchange_memory import BUCKET_VALUES
from dpo_core.contract.jobs import Sharding
from dpo_core.data.pair_batch import PairBatch
from dpo_core.engine.agreed_unread import agreed_unread
from dpo_core.engine.checkpoint import stored_tensors
from dpo_core.engine.frozen import hold_matrices_in_half
from dpo_core.engine.meeting import meet
from dpo_core.engine.optim import build_optimizer, set_learning_rate
from dpo_core.engine.stored_tensor import StoredTensor, fill_from, whole
from dpo_core.model.forward import OF_SCORER, PairScorer, SequenceScores
from dpo_core.model.unread_weights import UnreadWeights

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
MOMENTS = ("exp_avg", "exp_avg_sq")
# Any number but 1 makes DeepSpeed ready to accumulate; where a step ends is told to it microbatch by microbatch, and it
# is told not to divide by this.
ACCUMULATION = 2
PERSISTENT_PER_HIDDEN = (
    10  # weights up to 10 x hidden size (norms, biases) stay whole on every rank once gathered
)


def zero_config(sharding: Sharding) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a back end, without what only the model and the optimizer tell."""
    to_cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {
        "stage": STAGES[sharding.kind],
        "memory_efficient_linear": False,
        "reduce_bucket_size": BUCKET_VALUES,
        "allgather_bucket_size": BUCKET_VALUES,
    }
    if sharding.offload != "none":
        zero["offload_optimizer"] = to_cpu
    if sharding.offload == "optimizer_and_parameters":
        zero["offload_param"] = to_cpu
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": ACCUMULATION,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def start_zero_accelerator(sharding: Sharding, arguments: dict[str, Any], on_cpu: bool) -> Accelerator:
    """Return the accelerator of a ZeRO run. Raises ``ConfigError`` if accelerate took another back end.

    It drops DeepSpeed without a word where it is told to use the CPU, so it is not told: without a card there is nothing
    else to use.
    """
    if on_cpu:
        os.environ.pop("ACCELERATE_USE_CPU", None)
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at DeepSpeed's import
    import deepspeed  # takes seconds: paid by runs that use it

    if on_cpu:
        # DeepSpeed would compile a shared-memory collective here, for which a compiler has to be there; only its
        # inference uses it. With no operation marked as compatible nothing is compiled.
        deepspeed.ops.__compatible_ops__ = {}
    plugin = DeepSpeedPlugin(hf_ds_config=zero_config(sharding))
    accelerator = Accelerator(deepspeed_plugin=plugin, gradient_accumulation_steps=ACCUMULATION, **arguments)
    unset_hf_deepspeed_config()  # else transformers would share weights out itself, while it reads them, on every rank
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise ConfigError(
            f"compute.sharding is {sharding.kind} but accelerate started "
            f"{accelerator.distributed_type.value}. Start the step with `accelerate launch` and without a "
            "user config file."
        )
    return accelerator


@dataclass
class ZeroEngine:
    """See ``Engine``."""

    accelerator: Accelerator
    scorer: PairScorer
    deepspeed: Any  # DeepSpeedEngine
    stage: int

    @classmethod
    def start(cls, accelerator: Accelerator, scorer: PairScorer, optim: OptimConfig) -> "ZeroEngine":
        """Share a loaded scorer out; rank 0's weights count."""
        optimizer = build_optimizer(
            scorer.parameters(), optim
        )  # first: shares have no shapes to tell matrices by
        engine, _ = accelerator.prepare(*(share_weights(accelerator, scorer, optim.max_grad_norm), optimizer))
        new = cls(accelerator, scorer, engine, engine.zero_optimization_stage())
        new._create_moments()
        return new

    def scores(self, batch: PairBatch) -> SequenceScores:
        return self.deepspeed(batch)

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        self.deepspeed.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages gradients over ranks, so a rank's sum is scaled up by the number of ranks.
        self.deepspeed.backward(loss * self.accelerator.num_processes, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        set_learning_rate(self._torch_optimizer, learning_rate)
        self.deepspeed.step()
        norm = float(self.deepspeed.get_global_grad_norm())
        return norm if norm >= 0 else float("nan")  # -1 stands for a gradient that is not finite

    def discard_gradients(self) -> None:
        optimizer = self.deepspeed.optimizer
        optimizer.zero_grad(set_to_none=True)
        if self.stage < 3:
            optimizer.micro_step_id = -1
            optimizer.all_grad_tensors, optimizer.averaged_gradients = {}, {}

    def model_tensors(self) -> dict[str, StoredTensor]:
        return {name: self._weight(tensor) for name, tensor in stored_tensors(self.scorer.model).items()}

    def optimizer_tensors(self) -> dict[str, StoredTensor]:
        step = next(iter(self._torch_optimizer.state.values()))["step"]
        stored = {}
        for name, parameter in self._trained():
            stored[f"{name}::step"] = self._whole(step)
            stored |= {f"{name}::{key}": self._moment(parameter, key) for key in MOMENTS}
        return stored

    def load(self, folder: Path) -> None:
        fill_from(folder, RUN_WEIGHTS, self.model_tensors())
        fill_from(folder, RUN_OPTIMIZER, self.optimizer_tensors())
        step = next(iter(self._torch_optimizer.state.values()))["step"]
        for state in self._torch_optimizer.state.values():
            state["step"].copy_(step)
        self.spread_weights()

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self.deepspeed.optimizer.optimizer

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.scorer.model.named_parameters() if p.requires_grad]

    def _create_moments(self) -> None:
        """AdamW's state as its first step would make it, so that it can be restored and saved at any time."""
        optimizer = self.deepspeed.optimizer
        for flat in (
            optimizer.fp32_partitioned_groups_flat
            if self.stage == 3
            else optimizer.single_partition_of_fp32_groups
        ):
            self._torch_optimizer.state[flat] = {
                "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                **{key: torch.zeros_like(flat) for key in MOMENTS},
            }
        if self.stage < 3:
            optimizer._lazy_init_hp_params_optimizer_state()

    def _whole(self, tensor: Tensor) -> StoredTensor:
        return whole(tensor, self.accelerator.process_index, self.accelerator.num_processes)

    def _weight(self, tensor: Any) -> StoredTensor:
        """The optimizer's fp32 values: those that forwards gather may be rounded."""
        from deepspeed.utils import safe_get_full_fp32_param

        if not hasattr(tensor, "ds_id"):  # buffers are not shared out, nor is anything below stage 3
            return self._whole(tensor)
        assert tensor.requires_grad  # what is frozen is not stored
        return self._shared(tensor, self._hp_part(tensor, None), partial(safe_get_full_fp32_param, tensor))

    def _moment(self, parameter: Any, key: str) -> StoredTensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        gather = partial(safe_get_full_optimizer_state, parameter, key)
        if self.stage == 3:
            return self._shared(parameter, self._hp_part(parameter, key), gather)
        mapping = parameter._hp_mapping  # None where other ranks have all of it
        held = torch.empty(0) if mapping is None else mapping.get_hp_fragment(key)
        start = 0 if mapping is None else mapping.lp_fragment_address.start
        return StoredTensor(tuple(parameter.shape), torch.float32, held, gather, start)

    def _shared(self, parameter: Any, held: Tensor, gather: Callable[[], Tensor]) -> StoredTensor:
        start, held = _range(parameter, held, self.accelerator.process_index)
        return StoredTensor(tuple(parameter.ds_shape), held.dtype, held, gather, start)

    def _hp_part(self, parameter: Any, key: str | None) -> Tensor:
        """DeepSpeed's own memory of an fp32 weight (no key) or a moment, padding included."""
        part, _ = parameter._z3_optimizer._get_fp32_opt_state_partition(parameter, False, key)
        return part

    @torch.no_grad()
    def spread_weights(self) -> None:
        """Bring the other copies in line, after the values that this rank stores have changed."""
        parameters: list[Any] = [parameter for _, parameter in self._trained()]
        if self.stage < 3:
            for parameter in parameters:
                if parameter._hp_mapping is not None:
                    parameter._hp_mapping.update_hp()
            return
        gathered = [p for p in parameters if p.ds_status.name == "AVAILABLE"]  # small weights stay whole
        if gathered:
            gathered[0].partition(gathered)
        for parameter in parameters:
            parameter.ds_tensor.copy_(self._hp_part(parameter, None).view_as(parameter.ds_tensor))
        if gathered:
            gathered[0].all_gather(gathered)


def share_weights(accelerator: Accelerator, scorer: PairScorer, max_grad_norm: float = 1.0) -> PairScorer:
    """Leave, under ZeRO-3, this rank its part of every weight, one weight at a time; rank 0's values count. In place."""
    accelerator.free_memory()  # of a model that was scored before: accelerate and DeepSpeed would keep it
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    config["gradient_clipping"] = max_grad_norm
    if config["zero_optimization"]["stage"] == 3:
        import deepspeed

        hidden = cast(nn.Embedding, scorer.model.get_input_embeddings()).embedding_dim
        config["zero_optimization"]["stage3_param_persistence_threshold"] = PERSISTENT_PER_HIDDEN * hidden
        scorer.is_split = True
        batch = {"train_batch_size": ACCUMULATION * accelerator.num_processes}
        unread = agreed_unread(accelerator, scorer.model)
        if scorer.precision == "bf16":
            _send_in_half(scorer, have_values=accelerator.is_main_process and not unread)
        init = _without_broadcast() if unread else deepspeed.zero.Init
        init(module=scorer, config_dict_or_path=config | batch)
        if unread:
            _fill_parts(scorer, unread, accelerator.process_index)
            meet(accelerator)
    return scorer


def _send_in_half(scorer: PairScorer, have_values: bool) -> None:
    """Have matrices gathered as bf16. Autocast rounds all but embeddings at every use anyway.

    The mark is that of DeepSpeed's setting ``torch_autocast``, which would reduce gradients in bf16 as well; without the
    setting they are reduced in fp32.
    """
    from deepspeed.runtime.torch_autocast import PARAM_COMM_DTYPE_ATTR_NAME

    for parameter in hold_matrices_in_half(scorer, have_values):
        setattr(parameter, PARAM_COMM_DTYPE_ATTR_NAME, torch.bfloat16)


def _without_broadcast() -> Any:
    """DeepSpeed's way to share a model out, less the sending of rank 0's weights, which nobody has read yet."""
    import deepspeed

    class InitInPlace(deepspeed.zero.Init):
        def _zero_init_param(self, param: Any) -> None:
            self._convert_to_deepspeed_param(param)
            param.partition()

    return InitInPlace


@torch.no_grad()
def _fill_parts(scorer: PairScorer, unread: UnreadWeights, rank: int) -> None:
    """Read this rank's part of every weight from the checkpoint's files."""
    for name, parameter in scorer.named_parameters():
        start, held = _range(parameter, cast(Any, parameter).ds_tensor, rank)
        unread.fill(name.removeprefix(OF_SCORER), held, start)
    for name, buffer in scorer.named_buffers():
        unread.fill(name.removeprefix(OF_SCORER), buffer)
    unread.slices.close()


def _range(parameter: Any, held: Tensor, rank: int) -> tuple[int, Tensor]:
    """A rank's part under ZeRO-3 less the padding of the last ones. -> first value, flat values"""
    share, size = parameter.ds_tensor.ds_numel, parameter.ds_numel
    start = min(rank * share, size)
    return start, held.detach().view(-1)[: min(share, size - start)]
