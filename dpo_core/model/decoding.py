"""The forwards of a generation: the prompts of a batch at once, then one token of every row at a time.

A token's forward is a thousand small kernels, which a card computes faster than the host can ask for them. There it is
recorded once a batch, as a CUDA graph, and replayed: keys and values lie in tensors as long as the longest answer, and what
changes from token to token is written into tensors that the graph reads. A graph that does not compute what its kernels
compute one by one is not used.

Shapes: R rows of a batch, P tokens of its longest prompt, T tokens so far, L of the longest answer with its prompt,
V vocabulary.
"""

import inspect
import logging
from collections.abc import Callable
from threading import Event

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from dpo_core.contract.model_shape import EXPERTS, learned_positions
from dpo_core.model.attention import PAIRWISE, layer_reach, text_config, why_not_shared

log = logging.getLogger(__name__)
ROPES_BY_LENGTH = {"dynamic", "longrope"}  # the host chooses their frequencies, from the longest position
STEPS_COMPARED = 2  # of kernels and graph; the second shows whether what counts goes on counting
ROUNDING, ROUNDING_IN_HALF = 1e-4, 1e-2  # of the largest logit: a graph may have other kernels
Step = Callable[[], None]
_given_up = Event()


class Decoding:
    """Forwards whose keys and values grow by a token each."""

    def __init__(self, model: PreTrainedModel, ids_RP: Tensor, mask_RP: Tensor):
        """Read the prompts, padded on the left. ``logits_RV``: of each row's next token, now and after each ``read``."""
        self.model = model
        self.most_positions = learned_positions(model.config.to_dict())
        # Logits of the last position only: a whole prompt's [R, P, V] would be the largest tensor of the run.
        has_choice = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if has_choice else {}
        self._mask_RT = mask_RP
        positions_RP = (mask_RP.cumsum(dim=1) - 1).clamp(min=0)
        self._positions_R1 = positions_RP[:, -1:]
        self._cache: Cache | None = None
        self.logits_RV = self._forward(ids_RP, mask_RP, positions_RP)

    def read(self, next_R: Tensor) -> None:
        """Read each row's next token."""
        self._mask_RT = torch.cat([self._mask_RT, self._mask_RT.new_ones(len(next_R), 1)], dim=1)
        self._positions_R1 = self._positions_R1 + 1
        self.logits_RV = self._forward(next_R[:, None], self._mask_RT, self._positions_R1)

    def have_place(self) -> Tensor:
        """Return whether the model has a position for each row's next token, bool [R], on the CPU."""
        if self.most_positions is None:
            return torch.ones(len(self._positions_R1), dtype=torch.bool)
        return (self._positions_R1[:, 0] + 1 < self.most_positions).cpu()

    @property
    def can_drop_rows(self) -> bool:
        """Whether rows may leave."""
        return hasattr(self._cache, "batch_select_indices")

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with these rows alone, int64."""
        assert self._cache is not None
        self._cache.batch_select_indices(rows)
        self._mask_RT, self._positions_R1 = self._mask_RT[rows], self._positions_R1[rows]

    def plain_layers(self) -> list[DynamicLayer]:
        """Return keys and values of each layer; nothing where one of them sees less than everything before."""
        layers = [layer for layer in getattr(self._cache, "layers", ()) if type(layer) is DynamicLayer]
        return layers if self._cache and len(layers) == len(self._cache.layers) else []

    def _forward(self, ids_RT: Tensor, mask: Tensor, positions_RT: Tensor) -> Tensor:
        if self.most_positions is not None:  # rows that ended are read on, and count for nothing
            positions_RT = positions_RT.clamp(max=self.most_positions - 1)
        output = self.model(
            input_ids=ids_RT,
            attention_mask=mask,
            position_ids=positions_RT,
            past_key_values=self._cache,
            use_cache=True,
            **self._last_only,
        )
        self._cache = output.past_key_values
        return output.logits[:, -1]


class FixedDecoding(Decoding):
    """Forwards whose keys and values lie in tensors of the longest answer's length: the same kernels on the same tensors for
    every token. Rows stay to the end: what a token takes is reading the weights."""

    can_drop_rows = False

    def __init__(self, grown: Decoding, tokens: int, record: Callable[[Step], Step]):
        """Go on from prompts that were read, for ``tokens`` more. ``grown`` is used up, layer by layer. ``record``: makes of
        a step one that does the same."""
        self.model, self.most_positions, self._last_only = grown.model, None, grown._last_only
        self.logits_RV = grown.logits_RV.clone()
        rows, prompt = grown._mask_RT.shape
        read = grown.plain_layers()
        self._layers = [StaticLayer(prompt + tokens) for _ in read]
        for fixed, of_prompt in zip(self._layers, read, strict=True):
            assert of_prompt.keys is not None
            assert of_prompt.values is not None
            fixed.update(of_prompt.keys, of_prompt.values)
            of_prompt.keys = of_prompt.values = None
        self._cache = Cache(layers=[*self._layers])
        self._mask_R11L = torch.zeros(
            rows, 1, 1, prompt + tokens, dtype=torch.bool, device=self.logits_RV.device
        )
        self._mask_R11L[:, 0, 0, :prompt] = grown._mask_RT.bool()
        self._ids_R1 = torch.zeros_like(grown._positions_R1)
        self._positions_R1 = grown._positions_R1.clone()
        # Not the step itself: an object that refers to itself keeps its keys and values until garbage is collected.
        self._replay = self._recorded(record)

    def read(self, next_R: Tensor) -> None:
        """Read each row's next token."""
        self._ids_R1.copy_(next_R[:, None])
        (self._replay or self._step)()

    def _step(self) -> None:
        """Read ``_ids_R1``. Nothing here may depend on a value: a graph repeats what was recorded."""
        self._mask_R11L.index_fill_(3, self._layers[0].cumulative_length.reshape(1), True)
        self._positions_R1.add_(1)
        self.logits_RV.copy_(self._forward(self._ids_R1, self._mask_R11L, self._positions_R1))

    def _recorded(self, record: Callable[[Step], Step]) -> Step | None:
        """Return the recorded step; None where it cannot be recorded, or does something else then."""
        counts = [layer.cumulative_length for layer in self._layers]
        # Keys and values are written anew at the same places.
        state = [self.logits_RV, self._mask_R11L, self._positions_R1, *counts]
        before = [tensor.clone() for tensor in state]

        def logits_after(step: Step) -> Tensor:
            for _ in range(STEPS_COMPARED):
                step()
            found = self.logits_RV.clone()
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
            return found

        expected_RV = logits_after(self._step)
        try:
            step = record(self._step)
        except RuntimeError as error:  # also where a graph's own memory is not there
            log.info("answers are computed kernel by kernel: %s", str(error).partition("\n")[0])
            give_up_recording()
            return None
        off = float((logits_after(step) - expected_RV).abs().max() / expected_RV.abs().max())
        if not off <= (ROUNDING if expected_RV.dtype == torch.float32 else ROUNDING_IN_HALF):
            log.warning("answers are computed kernel by kernel: the recorded step is off by %.2g", off)
            give_up_recording()
            return None
        return step


def decoding_of(
    model: PreTrainedModel, ids_RP: Tensor, mask_RP: Tensor, tokens: int, may_record: bool
) -> Decoding:
    """Read prompts, padded on the left, and return how to go on for ``tokens`` more."""
    grown = Decoding(model, ids_RP, mask_RP)
    may_record = may_record and not _given_up.is_set() and tokens > STEPS_COMPARED
    record = recorder(ids_RP.device) if may_record else None
    return FixedDecoding(grown, tokens, record) if record and _has_fixed_kernels(grown) else grown


def recorder(device: torch.device) -> Callable[[Step], Step] | None:
    """Return what records a step, where kernels are asked for slower than they are computed."""
    return _as_graph if device.type == "cuda" else None


def give_up_recording() -> None:
    """Record nothing more in this process: torch's allocator takes a recording that failed for one that goes on."""
    _given_up.set()


def _as_graph(step: Step) -> Step:
    graph = torch.cuda.CUDAGraph()
    # Others of this process, as a checkpoint's writer, may use the card meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


def _has_fixed_kernels(grown: Decoding) -> bool:
    """Whether each token's forward is the same kernels, whatever the values: layers that see everything before, no
    experts, no positions that the host looks at, an attention that takes a mask as it is."""
    model, config = grown.model, text_config(grown.model)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type"), *(of.get("rope_type") for of in rope.values() if isinstance(of, dict))}
    return (
        getattr(model, "_can_compile_fullgraph", False)
        and why_not_shared(model) is None
        and config._attn_implementation in ("sdpa", PAIRWISE["sdpa"])
        and not any(getattr(config, name, None) for name in EXPERTS)
        and not kinds & ROPES_BY_LENGTH
        and grown.most_positions is None
        and not any(layer_reach(config).values())
        and bool(grown.plain_layers())
    )
