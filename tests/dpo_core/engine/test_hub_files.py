"""Exported weights, written tensor by tensor: the bytes of ``save_pretrained``, and one tensor in memory at a time."""

import weakref

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dpo_core.contract.config import AdapterConfig
from dpo_core.contract.errors import CheckpointError, StoreError
from dpo_core.engine import hub_files
from dpo_core.engine.checkpoint import model_tensors
from dpo_core.model.adapter import add_adapter, load_policy, save_adapter
from dpo_core.model.load import WITHOUT_MEMORY, load_model
from dpo_core.model.trained_weights import HeldWeights, StoredWeights, trained_in, updates_of
from dpo_core.model.unread_weights import weights_in
from tests.tiny_architectures import PACKED, tiny
from tests.tiny_models import make_model, make_tokenizer
from tests.tiny_stage import checkpoint_ref

CUT_BYTES = 30_000
HALF = torch.bfloat16


def saved(name, folder):
    """A tiny model of an architecture as a checkpoint. -> its reference"""
    torch.manual_seed(0)
    tiny(PACKED[name]).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return checkpoint_ref(folder)


def files_below(folder):
    return {path.name: path.read_bytes() for path in folder.glob("model*")}


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("llama", hub_files.FILE_BYTES),
        *(
            (name, CUT_BYTES)
            for name in ("gpt2", "gemma3_that_sees", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
        ),
    ],
)
def test_the_files_are_those_of_the_whole_model(tmp_path, monkeypatch, name, cut):
    """Tied and untied, transposed, with several prefixes, with experts that files hold one by one; one file and several."""
    checkpoint = saved(name, tmp_path / "sft")
    trained = load_model(checkpoint)
    (tmp_path / "weights").mkdir()
    save_file(model_tensors(trained), tmp_path / "weights" / "model.safetensors")
    trained.to(HALF).save_pretrained(tmp_path / "whole", max_shard_size=cut)
    monkeypatch.setattr(hub_files, "FILE_BYTES", cut)

    model = load_model(checkpoint, device=WITHOUT_MEMORY, dtype=HALF).to(HALF)
    (tmp_path / "streamed").mkdir()
    hashes = hub_files.write_weights(model, trained_in(tmp_path / "weights", model), tmp_path / "streamed")
    streamed, whole = files_below(tmp_path / "streamed"), files_below(tmp_path / "whole")
    assert streamed == whole
    assert hashes.keys() == {file for file in whole if file.endswith(".safetensors")}
    assert (len(hashes) > 1) == (cut == CUT_BYTES)


class OneAtATime:
    """Weights as a file would give them; counts how many of the tensors which it has given are alive."""

    def __init__(self, model):
        self.held, self.given, self.most = HeldWeights(model.state_dict()), [], 0

    def read(self, name, dtype):
        values = self.held.read(name, dtype).clone()
        self.given = [one for one in self.given if one()] + [weakref.ref(values)]
        self.most = max(self.most, len(self.given))
        return values


def test_one_tensor_of_a_file_is_in_memory(tmp_path):
    checkpoint = saved("llama", tmp_path / "sft")
    weights = OneAtATime(load_model(checkpoint))
    hub_files.write_weights(load_model(checkpoint, device=WITHOUT_MEMORY), weights, tmp_path)
    assert weights.most == 1
    assert len(weights.given) > 0


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_are_drawn_once(tmp_path, tied):
    checkpoint = checkpoint_ref(make_model(tmp_path / "sft", tie_word_embeddings=tied))
    trained = load_file(checkpoint.path / "model.safetensors")
    for folder in ("first", "second"):
        model = load_model(checkpoint, device=WITHOUT_MEMORY)
        weights = trained_in(checkpoint.path, model)
        model.resize_token_embeddings(448, mean_resizing=False)
        (tmp_path / folder).mkdir()
        hub_files.write_weights(model, weights, tmp_path / folder)
    assert files_below(tmp_path / "first") == files_below(tmp_path / "second")
    grown = load_file(tmp_path / "first" / "model.safetensors")
    assert grown.keys() == trained.keys()
    rows = trained["model.embed_tokens.weight"].shape[0]
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & trained.keys():
        assert torch.equal(grown[name][:rows], trained[name])
        assert grown[name][rows:].std().item() == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_adapter_is_merged_to_the_bits_of_peft(tmp_path, name):
    """gpt2's layers hold their weights transposed."""
    checkpoint = saved(name, tmp_path / "sft")
    lora = AdapterConfig(kind="lora", rank=4, alpha=7)
    policy = load_policy(checkpoint, lora, seed=0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(policy, tmp_path / "adapter", checkpoint)
    base = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload(safe_merge=True)
    model = load_model(checkpoint, device=WITHOUT_MEMORY)
    weights = StoredWeights(weights_in(checkpoint.path, model), updates_of(policy))
    changed = 0
    for name, tensor in merged.state_dict().items():
        assert torch.equal(weights.read(name, HALF), tensor.to(HALF)), name
        changed += not torch.equal(tensor, before[name])
    assert changed == len(weights.updates) > 0
    weights.close()


def test_an_adapter_that_is_not_finite_is_refused(tmp_path):
    checkpoint = saved("llama", tmp_path / "sft")
    model = load_model(checkpoint)
    add_adapter(model, AdapterConfig(kind="lora", target_modules=("q_proj",)), seed=0)
    next(parameter for name, parameter in model.named_parameters() if "lora_B" in name).data.fill_(torch.inf)
    plain = load_model(checkpoint, device=WITHOUT_MEMORY)
    weights = StoredWeights(weights_in(checkpoint.path, plain), updates_of(model))
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.q_proj\.weight infinite"):
        hub_files.write_weights(plain, weights, tmp_path)


def test_weights_of_another_model_are_refused(tmp_path):
    model = load_model(saved("llama", tmp_path / "sft"), device=WITHOUT_MEMORY)
    other = checkpoint_ref(make_model(tmp_path / "other"))
    with pytest.raises(StoreError, match="does not hold the weights of LlamaForCausalLM"):
        trained_in(other.path, model)
    file = tmp_path / "sft" / "model.safetensors"
    save_file(load_file(file) | {"more": torch.zeros(1)}, file)
    with pytest.raises(StoreError, match="other tensors than the model: \\['more'\\]"):
        trained_in(tmp_path / "sft", model)
