"""The router's load-balancing loss: transformers' own value, the formula by hand, its weighting over microbatches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import one_hot
from transformers import AutoConfig, AutoModelForCausalLM, OlmoeConfig, PreTrainedModel

from dpo_core.contract.config import AdapterConfig
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import BatchPlan, ExportJob
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.progress import Progress
from dpo_core.data.order import cut_for_rank, forward_tokens
from dpo_core.data.pair_batch import collate
from dpo_core.data.pair_file import common_prefix_length
from dpo_core.data.pairs import TokenizedPair
from dpo_core.engine.checkpoint import load_weights
from dpo_core.loss.losses import LOSSES
from dpo_core.model.adapter import adapter_disabled, add_adapter, load_policy, target_names
from dpo_core.model.forward import PairScorer, pair_logps
from dpo_core.model.load import load_model
from dpo_core.model.router import router_loss_of
from dpo_core.steps.train import set_up
from dpo_core.training.step_guard import reference_logps
from dpo_core.training.stop_request import StopRequest
from tests.step_process import metrics_of
from tests.tiny_architectures import EXPERTS, PACKED, SIZES, tiny
from tests.tiny_models import make_tokenizer
from tests.tiny_pairs import make_pair
from tests.tiny_stage import TinyStage, checkpoint_ref, make_rows, mix, reference_job, run_here

WITH_ROUTERS = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "gpt_oss")


def make_moe(folder: Path) -> Path:
    """Save a tiny OLMoE of 4 experts, 2 a token, with its tokenizer."""
    tokenizer = make_tokenizer()
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = OlmoeConfig(**{**SIZES, **EXPERTS, **ids, "vocab_size": len(tokenizer)})
    tiny(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def moe_stage(tmp_path_factory) -> TinyStage:
    """24 rows in one epoch, none held out."""
    root = tmp_path_factory.mktemp("moe")
    checkpoint = checkpoint_ref(make_moe(root / "model"))
    data = mix(make_rows(24), checkpoint, root / "data", held_out="0")
    return TinyStage(root, checkpoint, data, run_here(reference_job(root / "reference", data, checkpoint)))


def some_pairs(num: int) -> list[TokenizedPair]:
    rng = np.random.default_rng(3)
    return [make_pair(rng, *rng.integers(3, 20, 3)) for _ in range(num)]


def router_value(model: PreTrainedModel, pairs: list[TokenizedPair], layout: str) -> torch.Tensor:
    batch = collate(pairs, range(len(pairs)), layout)
    return PairScorer(model, "fp32", router_loss_of(model, 1.0))(batch).router_loss


def by_hand(model: PreTrainedModel, pairs: list[TokenizedPair], layout: str) -> float:
    """E * sum over experts of (choices of it / tokens) * (mean probability), over all layers, one sequence at a time."""
    probabilities = []
    for pair in pairs:
        prefix = 0 if layout == "padded" else common_prefix_length(pair.chosen_ids, pair.rejected_ids)
        for ids, skip in ((pair.chosen_ids, 0), (pair.rejected_ids, prefix)):
            out = model(input_ids=torch.tensor(ids)[None].long(), output_router_logits=True)
            probabilities += [
                logits.reshape(len(ids), -1)[skip:].double().softmax(-1) for logits in out.router_logits
            ]
    every = torch.cat(probabilities)
    chosen = one_hot(every.topk(2, dim=-1).indices, every.shape[1]).sum(dim=1).double()
    return (every.shape[1] * (chosen.mean(dim=0) * every.mean(dim=0)).sum()).item()


@pytest.mark.parametrize("family", WITH_ROUTERS)
def test_padded_it_is_the_value_of_transformers(family):
    model, pairs = tiny(PACKED[family]), some_pairs(3)
    batch = collate(pairs, range(3), "padded")
    with torch.no_grad():
        own = model(
            input_ids=batch.ids_RT, attention_mask=(batch.segment_RT >= 0).long(), output_router_logits=True
        )
        assert float(router_value(model, pairs, "padded")) == float(own.aux_loss)
    assert own.aux_loss > 0


@pytest.mark.parametrize("layout", ["padded", "prefix_sharing", "packed"])
@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe"])
def test_in_every_layout_it_is_the_formula_over_its_tokens(family, layout):
    """A shared prompt is one set of tokens; padding is none."""
    model, pairs = tiny(PACKED[family]), some_pairs(3)
    with torch.no_grad():
        got, expected = float(router_value(model, pairs, layout)), by_hand(model, pairs, layout)
    assert got == pytest.approx(expected, rel=1e-5)
    if layout != "padded":
        assert got != pytest.approx(by_hand(model, pairs, "padded"), rel=1e-4)


def test_its_gradient_reaches_the_router():
    model = tiny(PACKED["olmoe"])
    router_value(model, some_pairs(2), "prefix_sharing").backward()
    assert model.model.layers[1].mlp.gate.weight.grad.abs().max() > 0


def test_its_weight_is_the_models_own_unless_another_is_given():
    model = tiny(PACKED["olmoe"])
    assert router_loss_of(model, None).weight == model.config.router_aux_loss_coef == 0.01
    assert router_loss_of(model, 0.5).weight == 0.5
    assert router_loss_of(model, 0.0) is None
    dense, without = tiny(PACKED["llama"]), tiny(PACKED["deepseek_v3"])
    assert router_loss_of(dense, None) is router_loss_of(dense, 0.0) is router_loss_of(without, None) is None
    for model in (dense, without):
        with pytest.raises(
            ConfigError, match=f"{type(model).__name__} is no mixture-of-experts model with a load-bal"
        ):
            router_loss_of(model, 0.1)


def test_a_dense_model_with_a_weight_is_refused(stage, tmp_path):
    with pytest.raises(
        ConfigError, match=r"train\.router_aux_loss_weight is 0\.1, but LlamaForCausalLM is no mixture"
    ):
        run_here(stage.train_job(tmp_path, router_aux_loss_weight=0.1))
    assert "router_aux_loss" not in run_here(stage.train_job(tmp_path, max_steps=1)).last_metrics


@pytest.mark.parametrize("layout", ["padded", "prefix_sharing"])
def test_a_steps_gradient_is_that_of_the_token_weighted_mean(moe_stage, tmp_path, layout):
    """Autograd over the written-out objective: mean DPO loss + weight * sum of (tokens of m / all tokens) * aux of m."""
    job = moe_stage.train_job(tmp_path, "dpo", per_device=2, router_aux_loss_weight=0.5, forward=layout)
    trainer = set_up(job, Progress("train", sink=lambda event: None), StopRequest())
    scorer = trainer.engine.scorer
    rows, batches = trainer.step_batches(0)
    assert len(batches) == 2
    tokens = [int((batch.segment_RT >= 0).sum()) for batch in batches]
    assert tokens[0] != tokens[1]
    total, router = torch.zeros(()), torch.zeros(())
    for batch, num in zip(batches, tokens, strict=True):
        scores = scorer(batch)
        reference = reference_logps(trainer.step_loss.reference, batch.row_B.numpy(), torch.device("cpu"))
        output = LOSSES["dpo"].function(pair_logps(scores, batch.tokens_2B), reference, job.loss)
        router = router + num / sum(tokens) * scores.router_loss
        total = total + output.losses_B.sum() / 4
    (total + 0.5 * router).backward()
    expected = {name: p.grad.clone() for name, p in scorer.named_parameters()}
    trainer.engine.discard_gradients()
    losses = trainer.step_loss.begin(trainer.engine, rows, batches, 0.0)
    sums = sum(trainer.forward_backward(batch, losses, rows) for batch in batches)
    for name, parameter in scorer.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
    assert float(sums[-1]) == pytest.approx(router.item(), rel=1e-6)
    trainer.train()
    first = metrics_of(tmp_path)[0]
    assert first["router_aux_loss"] == pytest.approx(router.item(), rel=1e-5)
    assert first["loss"] == pytest.approx(total.item(), rel=1e-5)  # the preference loss alone


@pytest.mark.parametrize("layout", ["padded", "prefix_sharing", "packed"])
def test_shares_of_all_ranks_sum_to_one_and_fillers_have_none(moe_stage, tmp_path, layout):
    trainer = set_up(
        moe_stage.train_job(tmp_path, forward=layout),
        Progress("train", sink=lambda event: None),
        StopRequest(),
    )
    assert trainer.layout == layout
    rows = np.arange(5, 10)
    lengths = forward_tokens(trainer.dataset.lengths[rows], trainer.dataset.prefix_lengths[rows], layout)
    plan = BatchPlan(global_pairs=5, per_device_pairs=2, accumulation=1, num_processes=3)
    cuts = [cut for rank in range(3) for cut in cut_for_rank(rows, lengths, plan, 64, rank, layout)]
    batches = [
        collate([trainer.dataset[row] for row in cut.rows], cut.rows, layout, cut.weights) for cut in cuts
    ]
    shares = [trainer.share_of_tokens(batch, rows.tolist()) for batch in batches]
    assert sum(shares) == pytest.approx(1)
    assert [share == 0 for share in shares] == [cut.weights == (0.0,) for cut in cuts]
    num_tokens = [
        int((batch.segment_RT >= 0).sum()) for batch, share in zip(batches, shares, strict=True) if share
    ]
    assert [share for share in shares if share] == pytest.approx(
        [num / sum(num_tokens) for num in num_tokens]
    )


def test_balance_is_learned_where_it_weighs_and_its_weight_is_content(moe_stage, tmp_path):
    runs = {
        weight: moe_stage.train_job(
            tmp_path / str(weight),
            LossConfig(name="dpo", beta=0.01),
            learning_rate=3e-3,
            router_aux_loss_weight=weight,
            num_epochs=4,
        )
        for weight in (0.0, 1.0)
    }
    assert runs[0.0].fingerprint != runs[1.0].fingerprint
    off, on = (run_here(job) for job in runs.values())
    assert "router_aux_loss" not in off.last_metrics
    first, last = (
        metrics["router_aux_loss"] - 2 for metrics in (on.first_metrics, on.last_metrics)
    )  # 2: balanced
    assert 0 < last < first / 3


def test_recomputing_activations_gives_the_same_weights(moe_stage, tmp_path):
    plain, recomputed = (
        run_here(
            moe_stage.train_job(
                tmp_path / str(on), "dpo", gradient_checkpointing=on, max_steps=4, router_aux_loss_weight=0.5
            )
        )
        for on in (False, True)
    )
    expected = load_file(plain.weights_path / "model.safetensors")
    for name, tensor in load_file(recomputed.weights_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", [*WITH_ROUTERS, "deepseek_v3"])
def test_experts_get_no_adapter_and_their_names_are_refused(family):
    model = tiny(PACKED[family])
    names = target_names(model, AdapterConfig(kind="lora"))
    assert "o_proj" in names
    shared = family == "qwen2_moe"  # an expert for all tokens, of linear layers that peft leaves their names
    assert ({"gate_proj", "up_proj", "down_proj"} <= set(names)) == shared
    add_adapter(model, AdapterConfig(kind="lora", rank=2), seed=0)
    adapted = {
        name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad
    }
    assert adapted == set(names)
    assert not any(".experts." in name for name, p in model.named_parameters() if p.requires_grad)
    if family == "deepseek_v3":  # its first block is dense and has layers of these names
        with pytest.raises(
            ConfigError, match="names up_proj, which peft takes for the stacked experts of DeepseekV3"
        ):
            target_names(
                tiny(PACKED[family]), AdapterConfig(kind="lora", target_modules=("o_proj", "up_proj"))
            )


def test_an_adapter_goes_with_experts(moe_stage, tmp_path):
    result = run_here(
        moe_stage.train_job(tmp_path, "dpo", adapter=AdapterConfig(kind="lora", rank=2), learning_rate=1e-2)
    )
    assert result.base_check["largest_difference_per_token"] < 1e-5
    assert result.trained_parameters == 2 * 2 * (
        2 * 64 + 2 * 48
    )  # attention: experts and routers stay as they are
    assert result.last_metrics["router_aux_loss"] > 1
    exported = run_here(
        ExportJob(
            weights_path=result.weights_path,
            adapter=result.adapter,
            weights_fingerprint=result.weights_fingerprint,
            checkpoint=moe_stage.checkpoint,
            precision="fp32",
        ).at(tmp_path / "export")
    )
    policy = load_policy(moe_stage.checkpoint, result.adapter, seed=0)
    load_weights(result.weights_path, policy)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        on, merged = policy(ids).logits, AutoModelForCausalLM.from_pretrained(exported.path)(ids).logits
        torch.testing.assert_close(merged[..., : on.shape[-1]], on, rtol=1e-4, atol=1e-4)
        with adapter_disabled(policy):
            assert (policy(ids).logits - on).abs().max() > 0.01


def test_routers_make_no_noise(tmp_path):
    """Mixtral multiplies a token by random numbers in training; policy and reference must agree on the same input."""
    config = PACKED["mixtral"].__class__(**{**PACKED["mixtral"].to_dict(), "router_jitter_noise": 0.1})
    tiny(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model = load_model(checkpoint_ref(tmp_path))
    assert AutoConfig.from_pretrained(tmp_path).router_jitter_noise == 0.1
    assert [layer.mlp.jitter_noise for layer in model.model.layers] == [0, 0]
