"""How much memory a training process needs, in bytes, told from the recipe and the model's size. All are estimates.

State, per trained parameter: 4 weights + 4 gradients + 8 AdamW moments (2 with 8-bit moments), as bf16 is autocast over
fp32 weights; per frozen one 4 (in 4 bits about 0.6). Sharding over N processes divides by N: zero1 the moments, zero2 the
gradients as well, zero3 and fsdp2 the weights as well; DeepSpeed keeps a second copy of the weights, 4 / N, which
it updates. Offloaded parts are in the machine's memory and not counted.

Gathered at a time where weights are shared out: DeepSpeed's limit of 1e9 values (ZeRO-3); two decoder layers, embeddings and
head (FSDP2).

Activations per token of a microbatch and layer: 34 x hidden bytes in bf16 (Korthikanti et al. 2022, arXiv 2205.05198, eq. 1
without the attention matrix), twice that in fp32; with gradient checkpointing 2 (4) x hidden a layer and one whole layer.
Logits: 3 fp32 copies of answer tokens x vocabulary.
"""

from dpo_core.contract.jobs import BatchPlan
from flows.settings.stage_config import StageConfig
from flows.terminal.model_size import ModelSize
from tasks.launch.stop_grace import MOMENTS_BYTES

FROZEN_BYTES = {"full": 4.0, "nf4": 0.6}
LIVE_VALUES_ZERO3 = 10**9  # DeepSpeed's stage3_max_live_parameters


def training_memory(config: StageConfig, size: ModelSize, batch: BatchPlan) -> dict[str, int]:
    """Return part -> bytes of one training process; nothing where the model's size is not known."""
    if size.num_parameters is None:
        return {}
    memory = _state(config, size, size.num_parameters) | _gathered(config, size, size.num_parameters)
    if size.num_layers and size.hidden_size and size.vocab_size:
        one_pair = 2 * config.data.max_length_tokens
        tokens = max(one_pair, min(one_pair * batch.per_device_pairs, config.train.tokens_per_forward))
        scale = 2 if config.train.precision == "fp32" else 1
        layer = 34 * scale * tokens * size.hidden_size
        kept = 2 * scale * tokens * size.hidden_size * size.num_layers + layer
        memory["activations, at most"] = (
            kept if config.train.gradient_checkpointing else layer * size.num_layers
        )
        memory["logits, at most"] = 3 * 4 * tokens * size.vocab_size
    return memory


def bytes_per_trained(config: StageConfig) -> float:
    """Return bytes that a process holds of every trained parameter: weight, gradient, moments, DeepSpeed's second
    weight.
    """
    kind, offload, ranks = config.compute.sharding, config.compute.offload, config.compute.num_processes
    weight = (
        6.0 if config.train.precision == "bf16_pure" else 4.0
    )  # bf16_pure: a bf16 copy beside the fp32 master
    gradient, moments = 4.0, float(MOMENTS_BYTES[config.optim.optimizer])
    second = 4.0 if kind.startswith("zero") else 0.0
    if kind != "none":
        moments, second = moments / ranks, second / ranks
    if kind in ("zero2", "zero3", "fsdp2"):
        gradient /= ranks
    if kind in ("zero3", "fsdp2"):
        weight /= ranks
    if offload != "none":
        moments = second = 0.0
    if offload == "optimizer_and_parameters":
        weight = 0.0
    if kind == "fsdp2" and offload != "none":
        gradient = 0.0
    return weight + gradient + moments + second


def _state(config: StageConfig, size: ModelSize, num_parameters: int) -> dict[str, int]:
    """Weights, gradients and moments; an adapter whose size is not known yet is left out, as it is small."""
    each, adapter = bytes_per_trained(config), config.adapter
    if adapter.kind == "none":
        return {f"weights, gradients, AdamW ({each:g} B a parameter)": int(each * num_parameters)}
    shares = config.compute.num_processes if config.compute.sharding in ("zero3", "fsdp2") else 1
    frozen = (
        0.0
        if config.compute.offload == "optimizer_and_parameters"
        else FROZEN_BYTES[adapter.base_weights] / shares
    )
    parts = {f"frozen weights ({frozen:g} B a parameter)": int(frozen * num_parameters)}
    if trained := size.adapter_parameters(adapter):
        parts[f"adapter of rank {adapter.rank}: {trained:,} parameters ({each:g} B each)"] = int(
            each * trained
        )
    return parts


def _gathered(config: StageConfig, size: ModelSize, num_parameters: int) -> dict[str, int]:
    if config.compute.sharding == "zero3":
        return {"gathered weights, at most": 4 * min(LIVE_VALUES_ZERO3, num_parameters)}
    if config.compute.sharding == "fsdp2" and size.num_layers and size.hidden_size and size.vocab_size:
        ends = min(2 * size.vocab_size * size.hidden_size, num_parameters)
        return {"gathered weights, at most": 4 * (ends + 2 * (num_parameters - ends) // size.num_layers)}
    return {}
