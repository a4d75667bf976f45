"""Tensor parallelism: neighbouring processes share each layer's matrices out and compute every forward together.

As in Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053). Of the linear layers that read the residual stream a process has
some of the outputs (whole heads, a part of the MLP's width), of those that write to it the inputs that are these, and the
products of all are summed. Embedding and vocabulary head are shared out by tokens. The residual stream and the norms are the
same everywhere, so each process's model is one of fewer heads and a smaller MLP, and what shares weights out over the other
processes needs to know nothing of it.

Which matrices these are, transformers says itself (``base_model_tp_plan`` of a model's configuration). Its own ways to run
them are not used: they compute attention of models with norms over all queries (OLMo 2) whole on every process, and leave
embedding and head whole.

Shapes: R rows, T tokens, H hidden size, V tokens of the vocabulary.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from dpo_core.contract.tensor_parallel import check_tensor_degree, parts_of_plan
from dpo_core.model.attention import decoder_of, text_config
from dpo_core.model.tensor_ranks import JoinedOutput, SharedInput, SummedOutput, TensorRanks

ATTRIBUTE = "_pairline_tensor_share"
QUERY_NORMS = ("q_norm", "k_norm")  # of all queries or keys together, or of each head


class Division(NamedTuple):
    """How a parameter is shared out."""

    dimension: int
    shape: torch.Size  # of the whole


@dataclass(frozen=True, slots=True)
class TensorShare:
    """What of a model this process has. Names are those of the model's parameters."""

    ranks: TensorRanks
    cuts: Mapping[str, Division]  # of what is shared out; of other parameters every process has all
    # What every process has and uses for its own heads alone: their gradients are parts of a sum.
    summed: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module) -> "TensorShare | None":
        """Return that of a model which was shared out, else None."""
        return cast("TensorShare | None", getattr(model, ATTRIBUTE, None))

    def num_values(self, name: str, here: int) -> int:
        """Return the values of a whole parameter of which ``here`` are here."""
        return self.cuts[name].shape.numel() if name in self.cuts else here


@torch.no_grad()
def share_tensors(model: PreTrainedModel, ranks: TensorRanks) -> TensorShare:
    """Leave this process memory for its part of each matrix, with no values in it, and have the model compute with the parts
    of all, in place. Raises ``ConfigError`` for a model that cannot be shared out so."""
    config = text_config(model).to_dict()
    check_tensor_degree(config, type(model).__name__, ranks.size)
    decoder = decoder_of(model)
    cuts = _Cuts(model, ranks)
    for layer, shared in _planned(decoder, getattr(decoder, "tensor_plan", None) or config_plan(model)):
        cuts.take(layer.weight, 0 if shared == "outputs" else 1)
        if layer.bias is not None:
            assert shared == "outputs"  # check_tensor_degree lets no other through
            cuts.take(layer.bias, 0)
        if shared == "inputs":
            layer.register_forward_hook(lambda _, inputs, output: SummedOutput.apply(output, ranks))
    for module in decoder.modules():
        children = dict(module.named_children())
        if any(cuts.has(getattr(child, "weight", None), 0) for child in children.values()):
            module.register_forward_pre_hook(_entered(ranks), with_kwargs=True)
            for name in set(QUERY_NORMS) & children.keys():
                _share_norm(children[name], cuts)
    tokens, head = (
        cast(nn.Embedding, model.get_input_embeddings()),
        cast(nn.Linear, model.get_output_embeddings()),
    )
    for parameter in (tokens.weight, *head.parameters()):
        cuts.take(parameter, 0)
    share = cuts.put_in_place()
    _computes(tokens, _embedding(tokens, ranks))
    _computes(head, _logits(head, ranks))
    setattr(head, ATTRIBUTE, share)
    setattr(model, ATTRIBUTE, share)
    return share


def config_plan(model: PreTrainedModel) -> Mapping[str, str]:
    """Return what transformers says of the model: name of a module of its decoder -> how it is shared out."""
    return text_config(model).base_model_tp_plan or {}


def _planned(decoder: nn.Module, plan: Mapping[str, str]) -> list[tuple[nn.Linear, str]]:
    """The linear layers of a plan, with what of them is shared out: outputs or inputs."""
    shared = {
        re.compile(re.escape(name).replace(r"\*", r"\d+")): what
        for name, what in parts_of_plan(plan).items()
        if what
    }
    return [
        (cast(nn.Linear, module), what)
        for name, module in decoder.named_modules()
        for pattern, what in shared.items()
        if pattern.fullmatch(name)
    ]


class _Cuts:
    """Parameters that are to be shared out."""

    def __init__(self, model: PreTrainedModel, ranks: TensorRanks) -> None:
        self.model, self.ranks = model, ranks
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.taken: dict[int, tuple[nn.Parameter, int]] = {}
        self.summed: set[str] = set()

    def take(self, parameter: Tensor, dimension: int) -> None:
        self.taken[id(parameter)] = (cast(nn.Parameter, parameter), dimension)

    def has(self, parameter: nn.Parameter | None, dimension: int) -> bool:
        return id(parameter) in self.taken and self.taken[id(parameter)][1] == dimension

    def put_in_place(self) -> TensorShare:
        """Put memory for this process's part where each parameter stands; tied ones stay tied."""
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in self.taken]
        assert all(parameter.dim() == 1 for parameter in others), "a plan names all matrices of a layer"
        parts = {}
        for key, (parameter, dimension) in self.taken.items():
            shape = list(parameter.shape)
            first, last = self.ranks.part(shape[dimension])
            shape[dimension] = last - first
            memory = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
            parts[key] = nn.Parameter(memory, parameter.requires_grad)
        for module in self.model.modules():
            for name, whole in module._parameters.items():
                module._parameters[name] = parts.get(id(whole), whole)
        cuts = {
            self.names[key]: Division(dimension, parameter.shape)
            for key, (parameter, dimension) in self.taken.items()
        }
        return TensorShare(self.ranks, cuts, frozenset(self.summed))


def _entered(ranks: TensorRanks) -> Callable[..., tuple[tuple, dict]]:
    """A hook before an attention or an MLP: its input is used with parts of matrices."""

    def enter(_: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        if inputs:
            return (SharedInput.apply(inputs[0], ranks), *inputs[1:]), named
        return inputs, named | {"hidden_states": SharedInput.apply(named["hidden_states"], ranks)}

    return enter


def _share_norm(norm: nn.Module, cuts: _Cuts) -> None:
    """A norm of each head stays as it is; one over all of them takes their squares from all processes."""
    weight = cast(nn.Parameter, norm.weight)
    config = text_config(cuts.model)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if weight.numel() == head:
        cuts.summed.add(cuts.names[id(weight)])
        return
    ranks, width = cuts.ranks, weight.numel()
    epsilon = cast(float, getattr(norm, "variance_epsilon", None) or norm.eps)
    cuts.take(weight, 0)

    def forward(values: Tensor) -> Tensor:
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        own = exact.square().sum(dim=-1, keepdim=True)
        squares = SharedInput.apply(SummedOutput.apply(own, ranks), ranks)
        normed = exact * torch.rsqrt(squares / width + epsilon)
        return (cast(Tensor, norm.weight) * normed).to(values.dtype)

    _computes(norm, forward)


def _computes(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
    """Have a module compute something else between its hooks."""
    module.forward = forward


def _embedding(module: nn.Embedding, ranks: TensorRanks) -> Callable[[Tensor], Tensor]:
    """Rows of this process's tokens, and nothing of the others', summed. The pad token gets no gradient, as before."""
    first, last = ranks.part(module.num_embeddings)
    pad = module.padding_idx
    own_pad = pad - first if pad is not None and first <= pad < last else None

    def forward(ids_RT: Tensor) -> Tensor:
        is_own_RT = (ids_RT >= first) & (ids_RT < last)
        own_RT = torch.where(is_own_RT, ids_RT - first, 0)
        rows_RTH = embedding(own_RT, module.weight, own_pad)
        return SummedOutput.apply(torch.where(is_own_RT[..., None], rows_RTH, 0), ranks)

    return forward


def _logits(head: nn.Linear, ranks: TensorRanks) -> Callable[[Tensor], Tensor]:
    """Logits of the whole vocabulary, for the stock forward and for answers."""

    def forward(hidden: Tensor) -> Tensor:
        own = linear(SharedInput.apply(hidden, ranks), head.weight, head.bias)
        return JoinedOutput.apply(own, ranks, head.out_features)

    return forward
