"""Scoring in bf16 without sharding: matrices are held in bf16, and the numbers are those of autocast over float32."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo_core.contract.jobs import Sharding
from dpo_core.data.pair_batch import collate
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.engine.choose import calling_the_model, load_for_scoring
from dpo_core.engine.distributed import start_accelerator
from dpo_core.model.forward import PairScorer
from dpo_core.model.generate import Generation, answer_greedily
from dpo_core.model.load import load_model
from tests.tiny_models import make_model, make_tokenizer
from tests.tiny_stage import checkpoint_ref

PLAIN = Sharding()


@pytest.fixture(scope="module", params=[True, False], ids=["as trained in bf16", "in float32"])
def checkpoint(tmp_path_factory, request):
    """Of float32 embeddings rounding would change the numbers: they stay as they are."""
    folder = make_model(tmp_path_factory.mktemp("model"), tie_word_embeddings=request.param)
    if request.param:
        file = folder / "model.safetensors"
        rounded = {name: tensor.bfloat16().float() for name, tensor in load_file(file).items()}
        save_file(rounded, file, metadata={"format": "pt"})
    return checkpoint_ref(folder)


def test_the_numbers_are_those_of_float32_weights_under_autocast(stage, checkpoint):
    dataset = PairDataset.open(stage.data.path, "train")
    batch = collate([dataset[row] for row in range(4)], range(4), "padded")
    in_half = load_for_scoring(checkpoint, "bf16", PLAIN, start_accelerator())
    in_full = PairScorer(load_model(checkpoint), "bf16")
    with torch.no_grad():
        assert torch.equal(in_half(batch).sums_S, in_full(batch).sums_S)


def test_matrices_take_two_bytes_and_nothing_is_trained(checkpoint):
    model = load_for_scoring(checkpoint, "bf16", PLAIN, start_accelerator()).model
    matrices = {name: p.dtype for name, p in model.named_parameters() if p.dim() > 1}
    kept = {name for name, kind in matrices.items() if kind != torch.bfloat16}
    assert kept == (set() if model.config.tie_word_embeddings else {"model.embed_tokens.weight"})
    assert not any(p.requires_grad for p in model.parameters())
    exact = load_for_scoring(checkpoint, "fp32", PLAIN, start_accelerator()).model
    assert {p.dtype for p in exact.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "bf16_pure"])
def test_answers_are_given_in_the_scorer_s_arithmetic(checkpoint, precision):
    accelerator = start_accelerator()
    scorer = load_for_scoring(checkpoint, precision, PLAIN, accelerator)
    prompts, seen = [torch.arange(3, 9).numpy(), torch.arange(3, 12).numpy()], set()
    for module in scorer.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    with calling_the_model(PLAIN, scorer, accelerator.device):
        answers = answer_greedily(scorer.model, make_tokenizer(), prompts, Generation(4, 2))
    assert len(answers) == 2
    assert seen == {torch.bfloat16}
