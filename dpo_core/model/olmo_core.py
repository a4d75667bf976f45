"""OLMo-core's Transformer in the place of transformers' model of the same checkpoint.

From OLMo-core come blocks, norms, projections, and how FSDP2 is applied to them. Three parts of it have a second way here,
for rows that hold both sides of pairs: rotary embedding by position ids, attention with our masks and kernels, and a head
that ``dpo_core.model.logprobs`` enters at trained tokens alone. OLMo-core's own forward drops position ids and masks without
a word. Padded rows with stock logits go through it all the same: it is the twin that layouts are compared with.

Parameters have the names that a checkpoint's files give them. Imported where a run asks for it alone.

Shapes: R rows, T tokens, H heads, D head size.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from olmo_core.nn.attention import Attention
from olmo_core.nn.hf import convert_state_to_hf
from olmo_core.nn.transformer import Transformer, TransformerDataParallelWrappingStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from dpo_core.model.olmo_core_config import layer_kinds, prove_translation, transformer_config

# In transformers' words, for the code that shares those models out, too. OLMo-core's own apply_tp gives attention all tokens
# of a row, but computes the head at each of them, and its parameters are DTensors, of which checkpoints would be no parts.
TENSOR_PLAN = {
    "blocks.*.attention.w_q": "colwise",
    "blocks.*.attention.w_k": "colwise",
    "blocks.*.attention.w_v": "colwise",
    "blocks.*.attention.w_out": "rowwise",
    "blocks.*.feed_forward.w1": "colwise",
    "blocks.*.feed_forward.w3": "colwise",
    "blocks.*.feed_forward.w2": "rowwise",
}
MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


class Float8Switch:
    """Whether layers that can compute products in float8 do; one for all of a model's."""

    __slots__ = ("is_on",)

    def __init__(self) -> None:
        self.is_on = True

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Turn it off inside the block."""
        self.is_on = False
        try:
            yield
        finally:
            self.is_on = True


class LayerRows:
    """What layers of a kind are told of the rows.

    A class of its own kind, as FSDP2 hands it on as it is: tensors in a dataclass, a tuple or a dictionary it rounds to
    bf16, in a layer's first forward, and with older torch not when the layer is computed again.
    """

    __slots__ = ("cache", "cos_RTD", "mask", "more", "sin_RTD")

    def __init__(
        self,
        sin_RTD: Tensor,  # float32, as is cos_RTD
        cos_RTD: Tensor,
        mask: Any,  # as the attention kernel wants it
        cache: Cache | None,
        more: dict[str, Any],  # for the kernel: the spans of pairs
    ) -> None:
        self.sin_RTD, self.cos_RTD = sin_RTD, cos_RTD
        self.mask, self.cache, self.more = mask, cache, more


class RowsAttention(Attention):
    """OLMo-core's attention, with a second way through the kernels that are registered with transformers."""

    layer_idx: int
    config: PreTrainedConfig
    is_causal = True

    @classmethod
    def take(cls, stock: Attention, number: int, config: PreTrainedConfig) -> None:
        """Make one of OLMo-core's, in place."""
        stock.__class__ = cls
        stock.layer_idx, stock.config = number, config
        stock.num_key_value_groups = stock.n_heads // stock.n_kv_heads

    def forward(self, x: Tensor, rows: LayerRows | None = None, **stock: Any) -> Tensor:
        """Return hidden states [R, T, hidden] of such; without ``rows`` as OLMo-core does it."""
        if rows is None:
            return super().forward(x, **stock)
        states = self._prepare_qkv(x, pos_sin=rows.sin_RTD, pos_cos=rows.cos_RTD)
        query, key, value = (state.transpose(1, 2) for state in states)
        if rows.cache is not None:
            key, value = rows.cache.update(key, value, self.layer_idx)
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output_RTHD, _ = kernel(
            self,
            query,
            key,
            value,
            rows.mask,
            dropout=0.0,
            scaling=self.head_dim**-0.5,
            sliding_window=self.window_size,
            **rows.more,
        )
        return self.w_out(output_RTHD.reshape(*x.shape[:-1], -1))

    def _apply_rope(
        self,
        q: Tensor,
        k: Tensor,
        start_pos: Any,
        pos_sin: Tensor | None,
        pos_cos: Tensor | None,
        *stock: Any,
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys [R, T, H, D], rotated by the tables of their own positions where there are such."""
        if pos_sin is None or pos_cos is None:
            return super()._apply_rope(q, k, start_pos, pos_sin, pos_cos, *stock)
        with torch.autocast(q.device.type, enabled=False):
            sin, cos = pos_sin[:, :, None], pos_cos[:, :, None]
            rotated = (self.rope._apply_rotary_pos_emb(sin, cos, states.float()) for states in (q, k))
            return tuple(states.type_as(q) for states in rotated)


class RowsTransformer(Transformer):
    """OLMo-core's Transformer, with a second forward that gives hidden states: transformers' decoder, to all who call it."""

    config: PreTrainedConfig
    kinds: list[str]
    gradient_checkpointing = False  # transformers' switch
    tensor_plan = TENSOR_PLAN

    @classmethod
    def take(cls, stock: Transformer, config: PreTrainedConfig) -> "RowsTransformer":
        """Make one of OLMo-core's, in place."""
        stock.__class__ = cls
        stock.config, stock.kinds = config, layer_kinds(config)
        for number, block in enumerate(stock.blocks.values()):
            RowsAttention.take(block.attention, number, config)
        return stock

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, stock: bool = False, **arguments: Any
    ) -> Any:
        """Return hidden states after the last norm, of token ids [R, T]; ``stock``: logits, by OLMo-core's own forward, at
        ``logits_to_keep`` of each row where that is given."""
        if stock:
            return super().forward(input_ids, **arguments)
        return self._hidden(input_ids, position_ids=position_ids, **arguments)

    def _hidden(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        **more: Any,
    ) -> BaseModelOutputWithPast:
        hidden = self.embeddings(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = (torch.arange(input_ids.shape[1], device=hidden.device) + seen)[None]
        masks = attention_mask if isinstance(attention_mask, dict) else {}
        rows = {}
        for kind in sorted(set(self.kinds)):
            mask = (
                masks[kind]
                if masks
                else MASKS[kind](
                    config=self.config,
                    inputs_embeds=hidden,
                    attention_mask=attention_mask,
                    past_key_values=past_key_values,
                    position_ids=position_ids,
                )
            )
            rope = self.blocks[str(self.kinds.index(kind))].attention.rope
            tables = rope.get_buffers(seen + input_ids.shape[1], hidden.device)
            sin, cos = tables.pos_sin[position_ids], tables.pos_cos[position_ids]
            rows[kind] = LayerRows(sin, cos, mask, past_key_values, more)
        for kind, block in zip(self.kinds, self.blocks.values(), strict=True):
            run = partial(block.__call__, rows=rows[kind])
            recompute = self.gradient_checkpointing and self.training
            hidden = self._gradient_checkpointing_func(run, hidden) if recompute else run(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=self.lm_head.norm(hidden), past_key_values=past_key_values
        )


class OlmoCoreModel(PreTrainedModel):
    """A causal language model as transformers knows it, computed by OLMo-core's Transformer."""

    supports_gradient_checkpointing = True
    float8: Float8Switch | None = None  # of layers that compute their products so
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: PreTrainedConfig) -> None:
        """Make it on the device ``meta``. Raises ``ConfigError`` and ``CheckpointError`` for what OLMo-core cannot
        express."""
        super().__init__(config)
        prove_translation(config)
        self.transformer = RowsTransformer.take(transformer_config(config).build(init_device="meta"), config)
        # transformers' embeddings of these models take no gradient for the pad token, which may be an end mark that is
        # read.
        self.transformer.embeddings.padding_idx = config.pad_token_id
        own = {name: torch.tensor([place]) for place, name in enumerate(self.transformer.state_dict())}
        names = list(own)
        # OLMo-core's own converter says what each is called.
        converted = convert_state_to_hf(config, own).items()
        self._stored = {f"transformer.{names[int(place)]}": name for name, place in converted}

    def get_decoder(self) -> nn.Module:
        """Return what gives hidden states."""
        return self.transformer

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.transformer.embeddings

    def get_output_embeddings(self) -> nn.Module:
        """Return the head's matrix."""
        return self.transformer.lm_head.w_out

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits [R, T, vocabulary] of token ids [R, T]; of the last ``logits_to_keep`` tokens, or of places [K].
        Rows that are filled up on the right go through OLMo-core's own forward: no real token sees what stands behind it."""
        places = logits_to_keep if isinstance(logits_to_keep, Tensor) else None
        keeps_all = places is None and not logits_to_keep
        if position_ids is None and not more.get("use_cache") and (keeps_all or places is not None):
            kept = {} if places is None else {"logits_to_keep": places.expand(len(input_ids), -1)}
            return CausalLMOutputWithPast(logits=self.transformer(input_ids, stock=True, **kept))
        output = self.transformer(input_ids, attention_mask=attention_mask, position_ids=position_ids, **more)
        at = slice(-logits_to_keep, None) if places is None else places  # all for 0
        return CausalLMOutputWithPast(
            logits=self.get_output_embeddings()(output.last_hidden_state[:, at]),
            past_key_values=output.past_key_values,
        )

    def named_parameters(self, *arguments: Any, **more: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Return parameters by the names that they have in a checkpoint's files."""
        for name, parameter in super().named_parameters(*arguments, **more):
            yield self._stored.get(name, name), parameter

    def state_dict(self, *arguments: Any, **more: Any) -> dict[str, Any]:  # type: ignore[override]  # it has overloads
        """Return tensors by the names that they have in a checkpoint's files."""
        own = super().state_dict(*arguments, **more)
        return {self._stored.get(name, name): tensor for name, tensor in own.items()}

    def share_out(self, mesh: DeviceMesh | None, half: bool) -> None:
        """Have PyTorch's FSDP2 share the parameters out as OLMo-core does; ``half``: gathered in bf16."""
        self.transformer.apply_fsdp(
            dp_mesh=mesh,
            param_dtype=torch.bfloat16 if half else None,
            # The head is entered behind the Transformer's forward: with what is gathered for all of it, it stays whole.
            wrapping_strategy=TransformerDataParallelWrappingStrategy.blocks,
        )
        self.transformer.set_reshard_after_forward(False, recurse=False)
