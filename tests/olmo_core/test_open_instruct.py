"""The seed workflow's arithmetic on OLMo-core's own model against a run of ours: the same logps and losses, step by step.

Theirs, from its sources: chosen and rejected in rows of their own, filled up on the right; log softmax of all logits,
gathered at the labels; sums of them (dpo) or means (dpo_norm, simpo); the mean loss of the batch; PyTorch's AdamW. Nothing
of ours but the pairs, their order and each step's learning rate takes part. Measured in float32: sums of about 110 nats
2.3e-5 apart at most, losses of 20 steps 2.1e-6.
"""

import numpy as np
import pytest
import torch
from olmo_core.nn.hf import convert_state_from_hf
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Olmo2Config,
    Olmo3Config,
    PreTrainedConfig,
    Qwen3Config,
)

from dpo_core.contract.loss_config import LossConfig
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import read_aligned
from dpo_core.model.olmo_core_config import transformer_config
from tests.step_process import metrics_of
from tests.tiny_architectures import MIXED, SIZES, tiny
from tests.tiny_models import make_tokenizer
from tests.tiny_stage import TinyStage, checkpoint_ref, make_rows, mix, reference_job, run_here

STEPS, BATCH, NOISE = 20, 4, 1e-4
LOSSES = {
    "dpo": LossConfig(name="dpo", beta=0.1),
    "dpo_norm": LossConfig(name="dpo_norm", beta=5.0),
    "simpo": LossConfig(name="simpo", beta=2.0, gamma_beta_ratio=0.3),
}


FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict]] = {
    "olmo3": (Olmo3Config, MIXED),
    "olmo2": (Olmo2Config, {}),
    "llama": (LlamaConfig, {}),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
}
# All losses of one family, means and reference values of each.
CASES = [*(("olmo3", loss) for loss in LOSSES), *((name, "dpo_norm") for name in FAMILIES if name != "olmo3")]


@pytest.fixture(scope="module", params=FAMILIES)
def olmo_stage(request, tmp_path_factory) -> TinyStage:
    """OLMo 3 with windows shorter than the rows, or another; 80 pairs, reference values by OLMo-core."""
    root, tokenizer = tmp_path_factory.mktemp("olmo"), make_tokenizer()
    kind, more = FAMILIES[request.param]
    # No pad token in config.json: OLMo-core's embedding would take its gradient, transformers' does not.
    sizes = SIZES | {"vocab_size": len(tokenizer), "pad_token_id": None, "max_position_embeddings": 512}
    model = tiny(kind(**sizes, **more, eos_token_id=tokenizer.eos_token_id))
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    checkpoint = checkpoint_ref(root / "model")
    data = mix(make_rows(STEPS * BATCH), checkpoint, root / "data", held_out="0")
    job = reference_job(root / "reference", data, checkpoint, implementation="olmo_core")
    return TinyStage(root, checkpoint, data, run_here(job))


def own_model(stage: TinyStage) -> nn.Module:
    """OLMo-core's Transformer of the checkpoint, as it is."""
    stock = AutoModelForCausalLM.from_pretrained(stage.checkpoint.path, dtype=torch.float32)
    model = transformer_config(stock.config).build(init_device="cpu")
    model.load_state_dict(
        convert_state_from_hf(stock.config, stock.state_dict(), model_type=stock.config.model_type)
    )
    return model


def side(pairs: list, name: str) -> tuple[Tensor, Tensor]:
    """-> ids [R, T], which of them carry the loss; filled up on the right."""
    ids = [torch.from_numpy(getattr(pair, f"{name}_ids").astype(np.int64)) for pair in pairs]
    trained = [torch.from_numpy(getattr(pair, f"{name}_trained").copy()) for pair in pairs]
    return tuple(nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (ids, trained))


def logps(model: nn.Module, pairs: list, mean: bool) -> tuple[Tensor, Tensor]:
    """Of chosen and rejected: sums over answer tokens, or means."""
    both = []
    for name in ("chosen", "rejected"):
        ids, trained = side(pairs, name)
        each = model(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        summed, counted = (each * trained[:, 1:]).sum(-1), trained[:, 1:].sum(-1)
        both.append(summed / counted if mean else summed)
    return both[0], both[1]


def their_losses(stage: TinyStage, name: str, learning_rates: list[float]) -> list[float]:
    loss, dataset, mean = LOSSES[name], PairDataset.open(stage.data.path, "train"), name != "dpo"
    model, frozen = own_model(stage), own_model(stage)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    losses = []
    for step, learning_rate in enumerate(learning_rates):
        pairs = [dataset[row] for row in range(step * BATCH, (step + 1) * BATCH)]
        chosen, rejected = logps(model, pairs, mean)
        with torch.no_grad():
            before = logps(frozen, pairs, mean)
        margin = chosen - rejected - (0.3 if name == "simpo" else before[0] - before[1])
        mean_loss = -logsigmoid(loss.beta * margin).mean()
        optimizer.zero_grad()
        mean_loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()
        losses.append(mean_loss.item())
    return losses


@torch.no_grad()
def test_reference_values_are_the_sums_of_the_plain_arithmetic(olmo_stage):
    dataset = PairDataset.open(olmo_stage.data.path, "train")
    ours = read_aligned(olmo_stage.reference.reference.path, "train", dataset.row_keys).sums
    theirs = logps(own_model(olmo_stage), [dataset[row] for row in range(len(dataset))], mean=False)
    np.testing.assert_allclose(ours, torch.stack(theirs, dim=1).numpy(), rtol=0, atol=NOISE)


@pytest.mark.parametrize(("olmo_stage", "name"), CASES, indirect=["olmo_stage"])
def test_twenty_steps_have_their_losses(olmo_stage, tmp_path, name):
    job = olmo_stage.train_job(tmp_path, LOSSES[name], implementation="olmo_core", learning_rate=1e-4)
    result, steps = run_here(job), metrics_of(tmp_path)
    assert (result.steps, result.forward) == (STEPS, "packed")
    theirs = their_losses(olmo_stage, name, [step["learning_rate"] for step in steps])
    assert [step["loss"] for step in steps] == pytest.approx(theirs, rel=0, abs=NOISE)
    assert abs(theirs[-1] - theirs[0]) > 100 * NOISE
