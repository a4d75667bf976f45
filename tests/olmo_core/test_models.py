"""OLMo-core's Transformer beside transformers' model of the same checkpoint: names, bits, logits, gradients, answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Olmo2Config,
    Olmo3Config,
    PreTrainedConfig,
    Qwen3Config,
)

from dpo_core.contract.config import AdapterConfig
from dpo_core.contract.errors import CheckpointError, ConfigError
from dpo_core.contract.float8 import ModelCode
from dpo_core.contract.refs import CheckpointRef
from dpo_core.data.pair_batch import collate
from dpo_core.data.pairs import TokenizedPair
from dpo_core.model import olmo_core_config
from dpo_core.model.adapter import load_policy
from dpo_core.model.attention import PAIRWISE, set_kernel
from dpo_core.model.forward import PairScorer, choose_layout
from dpo_core.model.generate import Generation, continue_all, own_choice
from dpo_core.model.load import load_model, load_on_olmo_core
from dpo_core.model.olmo_core_config import prove_translation
from dpo_core.model.recompute import checkpoint_layers
from dpo_core.model.regions import compile_regions
from dpo_core.model.stock_logits import of_predictors
from dpo_core.model.unread_weights import take_unread
from tests.dpo_core.model.test_attention import Numbers, assert_same, scores_and_gradients, some_pairs
from tests.dpo_core.model.test_regions import Graphs
from tests.tiny_architectures import MIXED, SIZES, WINDOW, tiny

CPU = torch.device("cpu")
YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "attention_factor": 0.1 * np.log(8.0) + 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
MODELS: dict[str, PreTrainedConfig] = {
    "olmo2": Olmo2Config(**SIZES),
    "olmo3": Olmo3Config(**SIZES, **MIXED),
    "olmo3 with YaRN": Olmo3Config(**SIZES, **MIXED, rope_theta=5e5, rope_scaling=dict(YARN)),
    "llama": LlamaConfig(**SIZES),
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama 3": LlamaConfig(**SIZES, rope_theta=5e5, rope_scaling=dict(LLAMA3)),
    "llama, linear": LlamaConfig(**SIZES, rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "qwen3 with YaRN": Qwen3Config(**SIZES, head_dim=16, rope_theta=5e5, rope_scaling=dict(YARN)),
    "qwen3 with windows": Qwen3Config(
        **SIZES, head_dim=16, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
}


def saved(config: PreTrainedConfig, folder: Path) -> CheckpointRef:
    """A random model of the architecture, as transformers writes it."""
    model = tiny(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # norms that are mixed up show only if they differ
                weight.normal_(mean=1.0, std=0.3)
    model.save_pretrained(folder)
    return CheckpointRef(path=folder, fingerprint="x", tokenizer_fingerprint="x", source="tiny")


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request, tmp_path_factory) -> CheckpointRef:
    return saved(MODELS[request.param], tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def both(checkpoint):
    """transformers' model and OLMo-core's."""
    return load_model(checkpoint), load_on_olmo_core(checkpoint)


def test_tensors_have_the_names_and_the_bits_of_the_files(checkpoint, both):
    stored = load_file(Path(checkpoint.path) / "model.safetensors")
    stock, model = both
    ours = dict(model.named_parameters())
    assert ours.keys() == dict(stock.named_parameters()).keys() == stored.keys()
    assert model.state_dict().keys() == stock.state_dict().keys()
    for name, tensor in stored.items():
        assert torch.equal(ours[name], tensor), name
    unread = take_unread(load_on_olmo_core(checkpoint, in_parts=True))
    for name, tensor in stored.items():
        part = torch.empty(5)
        assert unread.fill(name, part, 7)
        assert torch.equal(part, tensor.flatten()[7:12]), name


@torch.no_grad()
def test_logits_are_those_of_transformers(both):
    stock, model = both
    ids = torch.randint(300, (2, 60), generator=torch.Generator().manual_seed(0))
    expected = stock(ids).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_plain_way_makes_the_logits_of_places_that_predict_alone(both):
    """All logits of two rows of 16,384 tokens would be 13 GB in fp32."""
    batch = collate(some_pairs(), range(len(some_pairs())), "padded")
    (stock, model), (chosen, _) = both, of_predictors(both[1], batch)
    places = chosen["logits_to_keep"]
    assert 0 < len(places) < batch.ids_RT.shape[1]
    logits = model(input_ids=batch.ids_RT, **chosen).logits
    assert logits.shape[:2] == (len(batch.ids_RT), len(places))
    torch.testing.assert_close(logits, model(batch.ids_RT).logits[:, places], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, stock(batch.ids_RT, **chosen).logits, rtol=0, atol=2e-5)


def scored(model, pairs: list[TokenizedPair], layout: str) -> Numbers:
    """Sums of pairs and the gradients of a sum of them, as a run of this layout computes them."""
    scorer = PairScorer(model.train(), "fp32")
    assert choose_layout(scorer, pairs, layout, CPU) == layout
    assert scorer.layout_difference < 1e-5
    return scores_and_gradients(scorer, pairs, layout)


@pytest.mark.parametrize("layout", ["packed", "prefix_sharing", "padded"])
def test_rows_of_pairs_give_the_sums_and_gradients_of_transformers(both, layout):
    """Pairs that share a prompt longer than the window, several in a row: by position ids and masks of ours."""
    pairs = some_pairs()
    assert_same(*(scored(model, pairs, layout) for model in reversed(both)))


def test_recomputed_layers_give_the_same_bits(both):
    pairs = some_pairs()
    plain, expected = scored(both[1], pairs, "packed")
    both[1].gradient_checkpointing_enable({"use_reentrant": False})
    sums, gradients = scored(both[1], pairs, "packed")
    both[1].gradient_checkpointing_disable()
    assert torch.equal(sums, plain)
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected.items())


def test_norms_and_mlps_are_compiled_and_layers_recomputed_within_a_budget(tmp_path):
    """The numbers of the model as it is."""
    pairs, checkpoint = some_pairs(), saved(MODELS["qwen3"], tmp_path)
    plain, other = (PairScorer(load_on_olmo_core(checkpoint), "fp32") for _ in range(2))
    graphs = Graphs()
    assert compile_regions(other.model, graphs) == 2 * 5 + 1  # two norms, those of queries and keys, the MLP
    kept = checkpoint_layers(other.model, 1 << 20)
    for scorer in (plain, other):
        scorer.stock_logits = False
        set_kernel(scorer.model, PAIRWISE["sdpa"])
        scorer.train()
    assert_same(*(scores_and_gradients(scorer, pairs, "packed") for scorer in (other, plain)))
    assert graphs.count > 0
    assert 0 < kept.used <= 1 << 20


def test_greedy_answers_are_those_of_transformers(both):
    """With a cache of keys and values, prompts padded on the left, some ending earlier than others."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(1, 300, length) for length in (3, 11, 30)]

    def answers(model) -> list[list[int]]:
        generation = Generation(12, 3, own_choice)
        return continue_all(
            model, (5,), prompts, generation, None, lambda logits, rows, step: logits.argmax(-1)
        )

    ours, theirs = (answers(model) for model in reversed(both))
    assert ours == theirs


def test_a_translation_that_leaves_something_out_is_refused(tmp_path, monkeypatch):
    checkpoint, rope = saved(MODELS["olmo3 with YaRN"], tmp_path), olmo_core_config._rope
    assert prove_translation(MODELS["olmo3 with YaRN"]) < 1e-5
    monkeypatch.setattr(olmo_core_config, "_rope", lambda config, kind: rope(config, "sliding_attention"))
    with pytest.raises(
        CheckpointError, match=r"not the model that config.json describes: logits of a small one differ"
    ):
        load_on_olmo_core(checkpoint)


def test_a_model_that_it_does_not_know_is_refused_with_those_that_it_does(tmp_path):
    checkpoint = saved(LlamaConfig(**SIZES, attention_bias=True), tmp_path)
    with pytest.raises(ConfigError, match="its attention_bias is True") as raised:
        load_on_olmo_core(checkpoint)
    assert "OLMo 2, OLMo 3, Llama, Qwen 3" in raised.value.advice


def test_a_model_that_nothing_can_build_is_a_checkpoint_that_cannot_be_used(tmp_path):
    checkpoint = saved(MODELS["llama 3"], tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"low_freq_factor": 1.0,', ""))
    with pytest.raises(CheckpointError, match=r"cannot be built as a model of OLMo-core: .*low_freq_factor"):
        load_on_olmo_core(checkpoint)


def test_code_of_the_checkpoint_s_own_is_not_left_out_without_a_word(tmp_path):
    """transformers would run it in the place of its own Llama."""
    checkpoint = saved(MODELS["llama"], tmp_path)
    file, own = tmp_path / "config.json", '{"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"},'
    file.write_text(file.read_text().replace("{", own, 1))
    load_on_olmo_core(checkpoint)
    with pytest.raises(ConfigError, match="computed by code of its own"):
        load_on_olmo_core(checkpoint.model_copy(update={"allow_remote_code": True}))


def test_an_adapter_is_refused_with_the_reason(tmp_path):
    checkpoint = saved(MODELS["llama"], tmp_path)
    with pytest.raises(ConfigError, match="adapters go on the layers of transformers' models"):
        load_policy(checkpoint, AdapterConfig(kind="lora"), 8, code=ModelCode("olmo_core"))


def test_what_it_saves_is_what_transformers_loads(checkpoint, both, tmp_path):
    """A checkpoint's round trip: read by OLMo-core, written under the files' names, read by transformers; the same bits."""
    stock, model = both
    again = AutoModelForCausalLM.from_config(stock.config, dtype=torch.float32)
    again.load_state_dict(model.state_dict())
    assert all(torch.equal(tensor, stock.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_tables_of_positions_stay_exact_where_fsdp2_casts_what_a_layer_gets():
    from dpo_core.model.olmo_core import LayerRows

    seen = []

    class Layer(torch.nn.Linear):
        def forward(self, x, rows):
            seen.append((x.dtype, rows.sin_RTD.dtype, rows.cos_RTD.dtype))
            return super().forward(x)

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layer = Layer(4, 4)
        fully_shard(
            layer,
            mesh=init_device_mesh("cpu", (1,)),
            mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16),
        )
        table = torch.ones(1, 2, 4)
        layer(torch.ones(2, 4), rows=LayerRows(table, table, None, None, {}))
    finally:
        dist.destroy_process_group()
    assert seen == [(torch.bfloat16, torch.float32, torch.float32)]
