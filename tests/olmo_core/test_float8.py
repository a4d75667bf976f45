"""``train.float8`` on a CPU, whose torch multiplies float8 matrices, too: what is computed so, how far off, which sizes."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from olmo_core.float8 import AOFloat8LinearRecipe, Float8Config
from torch import nn
from torch.nn.functional import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode
from torchao.float8.float8_ops import preprocess_addmm
from torchao.float8.float8_training_tensor import Float8TrainingTensor

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.refs import CheckpointRef
from dpo_core.data.pair_batch import collate
from dpo_core.model.adapter import halve_frozen
from dpo_core.model.attention import PAIRWISE, set_kernel
from dpo_core.model.forward import PairScorer, choose_layout
from dpo_core.model.load import load_on_olmo_core
from dpo_core.model.olmo_core_float8 import HalvedFirst, use_float8
from dpo_core.model.recompute import checkpoint_layers
from tests.dpo_core.model.test_attention import scores_and_gradients, some_pairs
from tests.olmo_core.test_models import CPU, MODELS, saved
from tests.tiny_architectures import SIZES

RECIPES = ("rowwise", "rowwise_with_gw_hp")
MATRICES = ("w_q", "w_k", "w_v", "w_out", "w1", "w2", "w3")
NAMES = ("olmo3", "qwen3")  # norms behind attention and MLP, and before


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request, tmp_path_factory) -> CheckpointRef:
    return saved(MODELS[request.param], tmp_path_factory.mktemp("model"))


def scorer_of(checkpoint: CheckpointRef, recipe: str = "none") -> PairScorer:
    """In bf16, for packed rows."""
    scorer = PairScorer(load_on_olmo_core(checkpoint, float8=recipe), "bf16")
    scorer.stock_logits = False
    set_kernel(scorer.model, PAIRWISE["sdpa"])
    return scorer.train()


def of_all(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def sums(scorer: PairScorer, together: int) -> torch.Tensor:
    """Sums of the pairs' sequences, so many pairs to a row."""
    pairs = some_pairs()
    with torch.no_grad():
        rows = [pairs[at : at + together] for at in range(0, len(pairs), together)]
        return torch.cat([scorer(collate(row, range(len(row)), "packed")).sums_S for row in rows])


@pytest.mark.parametrize("recipe", RECIPES)
def test_sums_and_gradients_are_near_those_of_bf16(checkpoint, recipe):
    in_float8, in_half = scorer_of(checkpoint, recipe), scorer_of(checkpoint)
    layers = [name for name, module in in_float8.model.named_modules() if isinstance(module, HalvedFirst)]
    assert len(layers) == len(MATRICES) * SIZES["num_hidden_layers"]
    assert {name.rpartition(".")[2] for name in layers} == set(MATRICES)
    assert not any("lm_head" in name for name in layers)
    (ours, our_gradients), (theirs, gradients) = (
        scores_and_gradients(scorer, some_pairs(), "packed") for scorer in (in_float8, in_half)
    )
    off = (ours - theirs).norm() / theirs.norm()
    assert 1e-5 < off < 2e-2
    assert our_gradients.keys() == gradients.keys()
    # Random norms behind attention and MLP make more of each cast than those before do: 0.979 and above 0.99.
    assert 0.97 < cosine_similarity(of_all(our_gradients), of_all(gradients), dim=0) < 1 - 1e-5


def test_tensors_keep_their_names_and_their_bits(checkpoint):
    stock, model = load_on_olmo_core(checkpoint), load_on_olmo_core(checkpoint, float8="rowwise")
    assert all(type(parameter) is torch.nn.Parameter for parameter in model.parameters())
    ours, theirs = model.state_dict(), stock.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_a_pair_gives_does_not_depend_on_the_pairs_beside_it(checkpoint):
    """With one scale for all tokens of a forward it does, so that recipe is left out."""
    scorer, together = scorer_of(checkpoint, "rowwise"), len(some_pairs())
    apart = (sums(scorer, 1) - sums(scorer, together)).abs().max()
    tensorwise = PairScorer(load_on_olmo_core(checkpoint), "bf16").train()
    tensorwise.model.transformer.apply_fp8(Float8Config(ao_recipe=AOFloat8LinearRecipe.tensorwise))
    tensorwise.stock_logits = False
    set_kernel(tensorwise.model, PAIRWISE["sdpa"])
    with_theirs = (sums(tensorwise, 1) - sums(tensorwise, together)).abs().max()
    assert apart < with_theirs / 2


def test_the_numbers_are_the_same_whether_weights_are_held_in_fp32_or_bf16(checkpoint):
    """A reference pass holds them in bf16, as FSDP2 gathers them; a training without sharding in fp32."""
    in_full, in_half = (scorer_of(checkpoint, "rowwise").requires_grad_(False) for _ in range(2))
    halve_frozen(in_half.model)
    assert {module.weight.dtype for module in in_half.modules() if isinstance(module, HalvedFirst)} == {
        torch.bfloat16
    }
    assert torch.equal(sums(in_full, 5), sums(in_half, 5))


def cast(x: torch.Tensor, dim: int | None) -> torch.Tensor:
    """What float8 leaves of a matrix: three bits behind the leading one, with a power of two for each slice along ``dim``
    (None: one for all) that brings its largest number to 448 at most."""
    largest = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = torch.exp2(torch.floor(torch.log2(448 / largest.clamp(min=1e-12))))
    return (x * scale).to(torch.float8_e4m3fn).float() / scale


@pytest.mark.parametrize("tokens", [16, 37])
@pytest.mark.parametrize("recipe", RECIPES)
def test_products_and_gradients_are_those_worked_out_by_hand(recipe, tokens):
    """Tokens of any size, those without any gradient and outputs without, which have nothing to be scaled by."""
    layer = nn.Sequential(nn.Linear(48, 32, bias=False)).bfloat16()
    model = SimpleNamespace(transformer=Layers(layer), modules=layer.modules)
    use_float8(model, recipe)
    generator = torch.Generator().manual_seed(0)
    sizes = 10 ** torch.linspace(-6, 2, tokens)[:, None]
    states = torch.randn(tokens, 48, generator=generator) * sizes
    gradient = torch.randn(tokens, 32, generator=generator) * 1e-6 / sizes
    states[3], gradient[5], gradient[:, 2] = 0, 0, 0
    states, gradient = states.bfloat16().requires_grad_(), gradient.bfloat16()
    output = layer(states[None])[0]
    output.backward(gradient)
    x, g, w = states.detach().float(), gradient.float(), layer[0].weight.detach().float()
    own = recipe == "rowwise"
    expected = {
        "output": cast(x, 1) @ cast(w, 1).T,
        "of states": cast(g, 1) @ cast(w, 0 if own else None),
        "of weights": cast(g, 0).T @ cast(x, 0) if own else g.T @ x,
    }
    for (name, by_hand), ours in zip(
        expected.items(), (output, states.grad, layer[0].weight.grad), strict=True
    ):
        torch.testing.assert_close(ours, by_hand.bfloat16(), rtol=2**-7, atol=1e-30, msg=name)


class Layers(NamedTuple):
    """Stands for a Transformer, as far as it is handed to torchao."""

    layers: nn.Module

    def apply_fp8(self, config: Float8Config) -> None:
        config.apply_float8_linear(self.layers)


class Products(TorchDispatchMode):
    """Sizes of the products in float8 while it is entered: rows, inner size, columns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default and isinstance(args[0], Float8TrainingTensor):
            first, _, second, _ = preprocess_addmm(*args)  # what torchao then hands to torch
            assert first.is_contiguous() and second.t().is_contiguous()  # noqa: PT018  # as a card wants them
            self.sizes.append((*first.shape, second.shape[1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", RECIPES)
def test_sizes_of_products_are_those_that_a_card_takes(checkpoint, recipe):
    """Any number of tokens, and of what else is summed or given multiples of 16: cuBLAS refuses others."""
    scorer, products = scorer_of(checkpoint, recipe), Products()
    batch = collate(some_pairs(), range(5), "packed")
    assert batch.ids_RT.numel() % 16, "a row's tokens are a multiple by chance"
    with products:
        scorer(batch).sums_S.sum().backward()
    each = {"rowwise": 3, "rowwise_with_gw_hp": 2}[recipe]
    assert len(products.sizes) == each * len(MATRICES) * SIZES["num_hidden_layers"]
    assert not [sizes for sizes in products.sizes if sizes[1] % 16 or sizes[2] % 16]


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_recomputed_layers_give_the_same_bits(checkpoint, budget):
    plain, recomputing = scorer_of(checkpoint, "rowwise"), scorer_of(checkpoint, "rowwise")
    kept = checkpoint_layers(recomputing.model, budget)
    (ours, our_gradients), (theirs, gradients) = (
        scores_and_gradients(scorer, some_pairs(), "packed") for scorer in (recomputing, plain)
    )
    assert (kept.used > 0) == (budget > 0)
    assert torch.equal(ours, theirs)
    assert all(torch.equal(our_gradients[name], gradient) for name, gradient in gradients.items())


@pytest.mark.parametrize("held_in", ["fp32", "bf16"])
def test_layouts_are_compared_exactly_as_without_it(checkpoint, held_in):
    """In fp32 or bf16, where a mask that is wrong by little shows; behind the comparison products are in float8 again."""
    with_it, without = (
        PairScorer(load_on_olmo_core(checkpoint, float8=recipe).requires_grad_(False), "bf16")
        for recipe in ("rowwise", "none")
    )
    for scorer in (with_it, without):
        if held_in == "bf16":
            halve_frozen(scorer.model)
        assert choose_layout(scorer, some_pairs(), "packed", CPU) == "packed"
    assert with_it.layout_difference == without.layout_difference < {"fp32": 1e-5, "bf16": 2e-2}[held_in]
    assert (with_it.noise("bf16"), without.noise("bf16")) == (0.1, 0.05)
    assert not torch.equal(sums(with_it, 1), sums(without, 1))


def test_a_model_of_sizes_that_it_cannot_multiply_is_refused(tmp_path):
    checkpoint = saved(MODELS["llama"].__class__(**SIZES | {"intermediate_size": 72}), tmp_path)
    load_on_olmo_core(checkpoint)
    with pytest.raises(ConfigError, match=r"its intermediate_size is 72.*multiples of 16"):
        load_on_olmo_core(checkpoint, float8="rowwise")


@pytest.mark.parametrize(("capability", "taken"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_a_card_without_float8_units_is_refused(checkpoint, monkeypatch, capability, taken):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA A100")
    if taken:
        assert load_on_olmo_core(checkpoint, float8="rowwise").float8.is_on
        return
    with pytest.raises(ConfigError, match=r"capability 8\.9 or later .* NVIDIA A100 has 8\.0"):
        load_on_olmo_core(checkpoint, float8="rowwise")
