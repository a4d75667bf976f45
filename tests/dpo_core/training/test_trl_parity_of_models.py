"""Adapters and mixtures of experts through this trainer and through TRL's: the same losses from the same start.

Measured over 10 steps in float32: losses 8e-7 apart at most, gradient norms 2e-6 (relative).
"""

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig

from dpo_core.contract.config import AdapterConfig
from dpo_core.model.adapter import load_policy
from tests.dpo_core.model.test_router import make_moe
from tests.dpo_core.training.test_trl_parity import OURS, SEED, BothRuns, trl_trainer
from tests.step_process import metrics_of
from tests.tiny_models import make_model
from tests.tiny_stage import TinyStage, checkpoint_ref, make_rows, mix, reference_job, run_here

pytestmark = pytest.mark.integration

NUM_ROWS, NUM_STEPS, BATCH = 40, 10, 4
LORA = AdapterConfig(kind="lora", rank=4, alpha=8)


def make_stage(root, make) -> TinyStage:
    """40 rows, none held out."""
    checkpoint = checkpoint_ref(make(root / "model"))
    data = mix(make_rows(NUM_ROWS), checkpoint, root / "data", held_out="0", seed=SEED)
    return TinyStage(root, checkpoint, data, run_here(reference_job(root / "reference", data, checkpoint)))


def both(stage: TinyStage, out_dir, trainer, **train: object) -> BothRuns:
    """Train with TRL's trainer, then with ours."""
    trainer.train()
    theirs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    AcceleratorState._reset_state(reset_partial_state=True)
    run_here(stage.train_job(out_dir, OURS["dpo"], **train))
    return BothRuns(metrics_of(out_dir), theirs)


@pytest.fixture(scope="module")
def lora_runs(tmp_path_factory) -> BothRuns:
    """The adapter on every linear layer; TRL gets our A and B."""
    root = tmp_path_factory.mktemp("lora")
    stage = make_stage(root, make_model)
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trainer = trl_trainer(stage.checkpoint, "dpo", root / "trl", NUM_ROWS, config, learning_rate=1e-2)
    start = dict(load_policy(stage.checkpoint, LORA, seed=SEED).named_parameters())
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(trained) == 28
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(start[name.removeprefix("base_model.model.")])
    return both(stage, root / "ours", trainer, adapter=LORA, learning_rate=1e-2, seed=SEED)


def test_losses_and_gradients_of_an_adapter_agree(lora_runs):
    ours, theirs = lora_runs.of("loss")
    assert len(ours) == NUM_STEPS
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert max(ours) - min(ours) > 0.1
    for name in ("grad_norm", "rewards/margins", "logps/chosen"):
        ours, theirs = lora_runs.of(name)
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5), name


@pytest.fixture(scope="module", params=[0.0, None, 0.5])
def expert_runs(request, tmp_path_factory) -> tuple[float | None, BothRuns]:
    """A tiny OLMoE; the padded layout and one microbatch a step, so that both average the router over the same tokens."""
    root = tmp_path_factory.mktemp("experts")
    stage = make_stage(root, make_moe)
    trainer = trl_trainer(stage.checkpoint, "dpo", root / "trl", NUM_ROWS, router_aux_loss_coef=request.param)
    return request.param, both(
        stage,
        root / "ours",
        trainer,
        per_device=BATCH,
        forward="padded",
        seed=SEED,
        router_aux_loss_weight=request.param,
    )


def test_losses_and_gradients_of_experts_agree(expert_runs):
    weight, runs = expert_runs
    used = 0.01 if weight is None else weight  # OLMoE's own
    for ours, theirs in zip(runs.ours, runs.theirs, strict=True):
        assert ours["loss"] + used * ours.get("router_aux_loss", 0) == pytest.approx(theirs["loss"], abs=2e-5)
        assert ("router_aux_loss" in ours) == ("aux_loss" in theirs) == bool(used)
        if used:
            assert ours["router_aux_loss"] == pytest.approx(theirs["aux_loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
