"""How much memory a training process needs, in bytes, told from the recipe and the model's shape. All are estimates.

State, per trained parameter: 4 weights + 4 gradients + 8 AdamW moments (2 with 8-bit moments), as bf16 is autocast over
fp32 weights; per frozen one 4 (beside a lora in bf16 2; in 4 bits 0.52, but of embeddings and head 4). Sharding over N
processes divides by N: zero1 the moments, zero2 the gradients as well, zero3 and fsdp2 the weights as well; DeepSpeed keeps
a second copy of the weights, 4 / N, which it updates. Processes that share matrices out (tensor_degree) are among the N;
what is gathered, a layer's activations but for the residual stream, and the head's logits are divided between them.
Offloaded parts are in the machine's memory and not counted.

Gathered at a time where weights are shared out: DeepSpeed's limit of 1e9 values (ZeRO-3); two decoder layers, embeddings and
head (FSDP2, in bf16 with precision bf16). Not yet exchanged: the gradients of the head and of two layers, whole, and one
layer's as they are sent (FSDP2); DeepSpeed's buckets and the head's gradient; DDP's buckets, a second copy of all gradients.

Activations and the vocabulary head: ``dpo_core.contract.step_memory``.

The reference pass and the evaluation hold weights alone, in bf16 2 bytes each (shared out 2 / N), what is gathered of them,
a forward, and keys and values of the answers that are being given.
"""

from dpo_core.contract.back_ends import BACK_ENDS, Part
from dpo_core.contract.config import AdapterConfig
from dpo_core.contract.exchange_memory import exchange_parts
from dpo_core.contract.jobs import BatchPlan
from dpo_core.contract.quantities import ANSWERS_PER_BATCH, AUTO_ON_CPU
from dpo_core.contract.step_memory import StepMemory, arithmetic_of, holds_frozen_in_half
from flows.settings.stage_config import StageConfig
from flows.terminal.model_size import ModelSize
from tasks.launch.stop_grace import MOMENTS_BYTES

FULL_BYTES, HALF_BYTES = 4.0, 2.0
# Of a weight in 4 bits: with a scale a 64 of them in 8 bits, and a scale a 256 of those in fp32 (QLoRA, section 3).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
NF4_OF_UNKNOWN_SHAPE = 0.6
# What a process holds of a trained parameter -> with what of it a back end shares it out.
IS_SHARED_AS: dict[str, Part] = {
    "weights": "weights",
    "bf16 weights beside their masters": "weights",
    "gradients": "gradients",
    "AdamW's moments": "moments",
    "DeepSpeed's second weights": "moments",
}
CONTEXT_BYTES = 2 << 30  # CUDA's context, cuBLAS' and NCCL's buffers, what the allocator cannot use


def training_memory(
    config: StageConfig, size: ModelSize, batch: BatchPlan, tokens: int | None = None
) -> dict[str, int]:
    """Return part -> bytes of one training process, for forwards of ``tokens`` (the recipe's, if empty); nothing where the
    model's size is not known."""
    if size.num_parameters is None:
        return {}
    memory = state(config, size, size.num_parameters) | exchange(config, size, size.num_parameters)
    if size.shape:
        tokens = tokens or tokens_of_forward(config, batch)
        step = step_memory(config, size)
        memory[f"activations of {tokens:,} tokens"] = step.activations(tokens)
        memory["a layer's backward, or the head's logits and gradient"] = max(
            step.layer_work(tokens), step.head_work(tokens)
        )
    return memory


def scoring_memory(config: StageConfig, size: ModelSize, shards: int | None = None) -> dict[str, int]:
    """Return part -> bytes of one process of the reference pass or the evaluation; nothing where the shape is not known.
    ``shards``: processes that share a copy out, where they are fewer than the recipe says."""
    if size.num_parameters is None or size.shape is None:
        return {}
    compute, train = config.compute, config.train
    shape, together = size.shape.shared_by(compute.tensor_degree), compute.tensor_degree
    splits = BACK_ENDS[compute.sharding].splits_weights
    each = FULL_BYTES if train.precision == "fp32" else HALF_BYTES
    each = nf4_bytes(size) if config.adapter.base_weights == "nf4" else each
    parts = (shards or compute.num_shards) if splits else 1
    each = 0.0 if compute.offload == "optimizer_and_parameters" else each / parts
    kind = compute.sharding if splits else "none"
    shared = exchange_parts(kind, shape, size.num_parameters // together, 0, splits, train.precision)
    # Weights are what an adapter's frozen ones are.
    step = StepMemory(shape, arithmetic_of(AdapterConfig(kind="lora"), train.precision, kind), False)
    tokens = max(2 * config.data.max_length_tokens, config.reference.tokens_per_batch)
    tokens = max(tokens, config.evaluation.tokens_per_batch)
    answers = tokens + ANSWERS_PER_BATCH * config.evaluation.max_new_tokens
    return {
        f"weights ({each:.3g} B a parameter)": int(each * size.num_parameters),
        **shared,
        f"a forward of {tokens:,} tokens": step.forward_alone(tokens),
        "keys and values of answers": step.keys_and_values(answers),
    }


def step_memory(config: StageConfig, size: ModelSize) -> StepMemory:
    """Return what forwards and backwards of this recipe take. The model's shape is known."""
    assert size.shape  # the caller has looked
    arithmetic = arithmetic_of(config.adapter, config.train.precision, config.compute.sharding)
    trains_all = config.adapter.kind == "none"
    train = config.train
    return StepMemory(
        size.shape.shared_by(config.compute.tensor_degree),
        arithmetic,
        train.gradient_checkpointing,
        trains_all,
        round(train.activation_budget_gib * 2**30),
    )


def tokens_of_forward(config: StageConfig, batch: BatchPlan) -> int:
    """Return the tokens that a forward has at most: the budget, or one pair of two longest sides where that is more."""
    one_pair = 2 * config.data.max_length_tokens
    budget = config.train.tokens_per_forward
    return max(one_pair, min(one_pair * batch.per_device_pairs, AUTO_ON_CPU if budget == "auto" else budget))


def bytes_per_trained(config: StageConfig) -> dict[str, float]:
    """Return part -> bytes that a process holds of every trained parameter."""
    offload, ranks = config.compute.offload, config.compute.num_shards
    back_end = BACK_ENDS[config.compute.sharding]
    parts = {
        "weights": 4.0,
        "gradients": 4.0,
        "AdamW's moments": float(MOMENTS_BYTES[config.optim.optimizer]),
    }
    if config.train.precision == "bf16_pure":
        parts["bf16 weights beside their masters"] = 2.0
    if back_end.is_deepspeed:
        parts["DeepSpeed's second weights"] = 4.0
    parts = {
        name: each / ranks if IS_SHARED_AS[name] in back_end.shares else each for name, each in parts.items()
    }
    if offload != "none":
        gone = ["AdamW's moments", "DeepSpeed's second weights"]
        gone += ["weights"] if offload == "optimizer_and_parameters" else []
        gone += ["gradients"] if not back_end.is_deepspeed else []
        parts = {name: each for name, each in parts.items() if name not in gone}
    return parts


def nf4_bytes(size: ModelSize) -> float:
    """Return bytes a weight of a model whose layers' linears are in 4 bits; all others are float32."""
    if size.shape is None:
        return NF4_OF_UNKNOWN_SHAPE
    share = size.shape.num_layers * size.shape.linear_parameters / size.shape.num_parameters
    return share * NF4_BYTES + (1 - share) * FULL_BYTES


def state(config: StageConfig, size: ModelSize, num_parameters: int) -> dict[str, int]:
    """Return part -> bytes of weights, gradients and moments; an adapter whose size is not known yet is left out, as it is
    small."""
    each, adapter = bytes_per_trained(config), config.adapter
    if adapter.kind == "none":
        return {
            f"{name} ({value:.3g} B a parameter)": int(value * num_parameters) for name, value in each.items()
        }
    shares = config.compute.num_shards if BACK_ENDS[config.compute.sharding].splits_weights else 1
    half = holds_frozen_in_half(adapter, config.train.precision)
    frozen = nf4_bytes(size) if adapter.base_weights == "nf4" else HALF_BYTES if half else FULL_BYTES
    frozen /= shares
    frozen = 0.0 if config.compute.offload == "optimizer_and_parameters" else frozen
    parts = {f"frozen weights ({frozen:.3g} B a parameter)": int(frozen * num_parameters)}
    if trained := size.adapter_parameters(adapter):
        of_all = sum(each.values())
        parts[f"adapter of rank {adapter.rank}: {trained:,} parameters ({of_all:.3g} B each)"] = int(
            of_all * trained
        )
    return parts


def exchange(config: StageConfig, size: ModelSize, num_parameters: int) -> dict[str, int]:
    """Return part -> bytes that exist because processes share something out."""
    trained = (
        num_parameters if config.adapter.kind == "none" else size.adapter_parameters(config.adapter) or 0
    )
    precision, together = config.train.precision, config.compute.tensor_degree
    several = config.compute.num_processes > 1 and precision != "bf16_pure"
    shape = size.shape and size.shape.shared_by(together)
    here = num_parameters // together, trained // together
    return exchange_parts(config.compute.sharding, shape, *here, several, precision)
