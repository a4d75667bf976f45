"""Whole training runs by layout: same losses and weights, less padding; an architecture that cannot share trains, too."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import MambaConfig

from dpo_core.contract.jobs import TrainResult
from tests.step_process import metrics_of
from tests.tiny_architectures import tiny
from tests.tiny_models import make_tokenizer
from tests.tiny_stage import TinyStage, checkpoint_ref, make_rows, mix, reference_job, run_here


@pytest.fixture(scope="module")
def runs(stage, tmp_path_factory) -> dict[str, tuple[TrainResult, list[dict]]]:
    """One run a layout, four pairs a forward."""

    def run(layout: str) -> tuple[TrainResult, list[dict]]:
        folder = tmp_path_factory.mktemp(layout)
        return run_here(stage.train_job(folder, per_device=4, forward=layout)), metrics_of(folder)

    return {layout: run(layout) for layout in ("packed", "prefix_sharing", "padded")}


@pytest.mark.parametrize("layout", ["packed", "prefix_sharing"])
def test_a_run_does_not_depend_on_its_layout(runs, layout):
    (result, steps), (expected, expected_steps) = runs[layout], runs["padded"]
    assert (result.forward, expected.forward) == (layout, "padded")
    assert result.job_fingerprint == expected.job_fingerprint
    for name in ("loss", "grad_norm", "rewards/margins"):
        assert [step[name] for step in steps] == pytest.approx(
            [step[name] for step in expected_steps], rel=1e-4, abs=1e-5
        )
    weights = load_file(expected.weights_path / "model.safetensors")
    for name, tensor in load_file(result.weights_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-4, atol=2e-5)


def test_padding_is_reported_and_packing_has_none(runs):
    shares = {layout: [step["tokens/padding_share"] for step in steps] for layout, (_, steps) in runs.items()}
    assert set(shares["packed"]) == {0.0}
    for layout in ("prefix_sharing", "padded"):
        assert all(0 < share < 1 for share in shares[layout][:-1])


def test_a_state_space_model_goes_through_all_steps_padded(tmp_path):
    """The default asks for packing; what comes out is what asking for padded rows gives, to the bit."""
    tokenizer = make_tokenizer()
    model = tiny(
        MambaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            state_size=4,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    checkpoint = checkpoint_ref(tmp_path / "model")
    data = mix(make_rows(12), checkpoint, tmp_path / "data", held_out="0")
    reference = run_here(reference_job(tmp_path / "reference", data, checkpoint))
    stage = TinyStage(tmp_path, checkpoint, data, reference)
    asked, plain = (
        run_here(stage.train_job(tmp_path / forward, forward=forward)) for forward in ("packed", "padded")
    )
    assert (reference.forward, asked.forward, plain.forward) == ("padded",) * 3
    assert asked.weights_sha256 == plain.weights_sha256
    assert asked.guard["largest_difference_per_token"] < 1e-5
    first, *_, last = metrics_of(tmp_path / "packed")
    assert last["loss"] < first["loss"]
