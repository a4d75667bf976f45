"""Who sees whom in rows that hold several sequences, for every kind of attention layer and every kernel.

A query sees keys of its own part and of its pair's shared prefix, not after itself in the row, and within the layer's
window. A window counts **positions**, not places in the row: the rejected answer stands behind the chosen one, but its
position ids go on where the prefix ends, so a mask by places would hide part of the prefix from it.

    sdpa, eager        packed rows: pairwise, two stock calls a pair and no mask of the row's width; else a dense mask;
                       sdpa on a card in half precision: one call a layer (`dpo_core.model.varlen`)
    flex_attention     block mask from (part, position) of each token; no dense mask exists on an accelerator
    flash_attention_2  no mask of its own kind: padded rows only (`dpo_core.model.forward` sees to it)

Shapes: R rows, T tokens, H heads, D head size.
"""

import inspect
import logging
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from dpo_core.contract.config import AttentionKernel
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.gpu_attention import check_gpu_attention
from dpo_core.data.pair_batch import PARTS, PairBatch
from dpo_core.model import varlen
from dpo_core.model.pair_spans import PairSpans, pairwise, to_add
from dpo_core.model.varlen import why_not_varlen

log = logging.getLogger(__name__)

PAIRWISE = {
    "sdpa": "sdpa_pairwise",
    "eager": "eager_pairwise",
}  # kernel -> its name here where it runs pair by pair
MASKED_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the part of the config that is about text: all but for models that see, too, as Gemma 3, which nest it."""
    return model.config.get_text_config()


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the part of a causal language model that gives hidden states; an adapter's wrapper passes the question on."""
    decoder = model.get_decoder()
    return decoder if decoder is not model else model.model


def why_not_shared(model: PreTrainedModel) -> str | None:
    """Return why an architecture cannot hold two sequences in one row, as far as its definition tells; None if it does
    not.
    """
    config = text_config(model)
    if getattr(model, "_is_stateful", False):
        return "its recurrent (state-space) layers read a row from left to right, past every mask"
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "its ALiBi biases count places in the row, not position ids"
    if others := set(getattr(config, "layer_types", None) or ()) - MASKED_KINDS:
        return f"its {', '.join(sorted(others))} layers take no attention mask"
    if "position_ids" not in inspect.signature(decoder_of(model).forward).parameters:
        return "it takes no position ids"
    return None


def layer_reach(config: PreTrainedConfig) -> dict[str, Callable[[Tensor, Tensor], Tensor] | None]:
    """Return kind of layer -> which (query position, key position) its window admits, None for all of them.

    A model without ``layer_types`` has one kind: sliding if the config says so (Mistral, Mixtral, Phi-3), else full.
    """
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    reach = {
        "full_attention": None,
        "sliding_attention": window and (lambda query, key: query - key < window),
        "chunked_attention": chunk and (lambda query, key: query // chunk == key // chunk),
    }
    alone = "sliding_attention" if window else "chunked_attention" if chunk else "full_attention"
    return {kind: reach[kind] for kind in sorted(set(getattr(config, "layer_types", None) or [alone]))}


def visibility(batch: PairBatch, reach: Callable[[Tensor, Tensor], Tensor] | None) -> Callable[..., Tensor]:
    """Return f(row, head, query, key), True where the query's token sees the key's; works on indices that broadcast."""
    segment_RT, position_RT = batch.segment_RT, batch.position_ids_RT

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own, other = segment_RT[row, query], segment_RT[row, key]
        visible = (key <= query) & ((other == own) | (other == own - own % PARTS))
        return visible if reach is None else visible & reach(position_RT[row, query], position_RT[row, key])

    return sees


def dense_mask(batch: PairBatch, reach: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor:
    """Return the mask, bool [R, 1, T, T], True = visible."""
    rows, width = batch.ids_RT.shape
    place = torch.arange(width, device=batch.ids_RT.device)
    row = torch.arange(rows, device=batch.ids_RT.device)
    return visibility(batch, reach)(row[:, None, None], row, place[:, None], place)[:, None]


def block_mask(batch: PairBatch, reach: Callable[[Tensor, Tensor], Tensor] | None) -> BlockMask:
    """Return the same visibility as blocks of 128 x 128 tokens, of which flex_attention skips the empty ones."""
    rows, width = batch.ids_RT.shape
    return create_block_mask(
        visibility(batch, reach),
        rows,
        None,
        width,
        width,
        device=batch.ids_RT.device,
        _compile=batch.ids_RT.device.type != "cpu",
    )


def attention_arguments(config: PreTrainedConfig, batch: PairBatch) -> dict:
    """Return what the model's forward must be given so that its attention treats the batch's rows right."""
    if batch.layout == "padded":
        # No position ids: filled up on the right they are the default, and some architectures have none.
        return {"attention_mask": (batch.segment_RT >= 0).long()}
    kernel = config._attn_implementation
    extra: dict[str, Tensor | PairSpans] = {"position_ids": batch.position_ids_RT}
    masks: dict[str, Tensor] | dict[str, BlockMask]
    if kernel in PAIRWISE.values() and batch.layout == "packed":
        # transformers hands a mask of four dimensions on as it is, and makes its own, T x T, where it gets none.
        nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.ids_RT.device)
        masks = dict.fromkeys(layer_reach(config), nothing)
        extra["pair_spans"] = PairSpans.of(batch)
    elif kernel == "flex_attention":
        masks = {kind: block_mask(batch, reach) for kind, reach in layer_reach(config).items()}
    else:
        dense = {kind: dense_mask(batch, reach) for kind, reach in layer_reach(config).items()}
        adds = kernel in ("eager", PAIRWISE["eager"])
        masks = {kind: to_add(mask) for kind, mask in dense.items()} if adds else dense
    return {"attention_mask": masks if len(masks) > 1 else next(iter(masks.values())), **extra}


@cache  # said once
def _tell(how: str, is_fast: bool) -> None:
    log.info(
        "attention of packed rows: %s",
        how if is_fast else f"pair by pair; of the variable-length kernel: {how}",
    )


def sdpa_pairwise(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    pair_spans: PairSpans | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Run sdpa in transformers' terms; without ``pair_spans`` (other layouts, generation) it is the stock one."""
    if pair_spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    def stock(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    has_more = kwargs.get("softcap") or kwargs.get("s_aux") is not None
    reason = "knows no soft caps and sinks" if has_more else why_not_varlen(query, dtype)
    if device != "cpu":
        _tell(reason or "one variable-length flash call a layer", reason is None)
    if reason is None:
        states, scale = (query.to(dtype), key.to(dtype), value.to(dtype)), kwargs.get("scaling")
        return varlen.attend(states, pair_spans.places, scale, sliding_window, varlen.flash), None
    if query.device.type == "cpu" and value.dtype == torch.bfloat16:
        # The CPU kernel's backward takes twice as long in bf16 as in fp32, casts included: 6.1 against 3.5 ms of one core
        # for 180 tokens and 9 heads of 64 (with AMX).
        with torch.autocast("cpu", enabled=False):
            states = query.float(), key.float(), value.float()
            output = pairwise(stock, False, states, pair_spans, sliding_window)
        return output.to(value.dtype), None
    return pairwise(stock, False, (query, key, value), pair_spans, sliding_window), None


def eager_pairwise(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    pair_spans: PairSpans | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return the architecture's own eager attention (soft caps, sinks), likewise."""
    own = sys.modules[type(module).__module__].eager_attention_forward
    if pair_spans is None:
        return own(module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs)

    def stock(*states_and_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        return own(module, *states_and_mask, **kwargs)

    return pairwise(stock, True, (query, key, value), pair_spans, sliding_window), None


def use_kernel(model: PreTrainedModel, kernel: AttentionKernel) -> None:
    """Set the kernel that the configuration asks for. sdpa means the model's own choice: a few have no sdpa.

    Raises ``ConfigError`` if the model or the machine does not have it.
    """
    if kernel == "sdpa":
        return
    check_gpu_attention(kernel, torch.cuda.device_count())
    try:
        set_kernel(model, kernel)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"train.attention {kernel} does not work with {type(model).__name__}: {error} Use "
            "train.attention sdpa."
        ) from error
    if text_config(model)._attn_implementation != kernel:
        raise ConfigError(
            f"train.attention {kernel} does not work with {type(model).__name__}, whose attention cannot be "
            f"replaced. Use train.attention sdpa."
        )


def set_kernel(model: PreTrainedModel, kernel: str) -> None:
    """Change a loaded model's attention kernel. Weights and numbers stay, but for the last bits."""
    AttentionInterface.register(PAIRWISE["sdpa"], sdpa_pairwise)
    AttentionMaskInterface.register(PAIRWISE["sdpa"], sdpa_mask)
    AttentionInterface.register(PAIRWISE["eager"], eager_pairwise)
    AttentionMaskInterface.register(PAIRWISE["eager"], eager_mask)
    model.set_attn_implementation(kernel)
