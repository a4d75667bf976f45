"""Small real runs that go wrong on purpose, through the real steps, and what the report's first line says of them."""

from pathlib import Path

import numpy as np
import pytest

from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.store import sha256_file
from tasks.report.verdict import VerdictOfRun, verdict_of
from tests.tiny_models import make_model
from tests.tiny_stage import WORDS, TinyStage, checkpoint_ref, make_rows, mix, reference_job, run_here

pytestmark = pytest.mark.integration
NUM_ROWS, HELD_OUT = 120, "60"  # fewer held-out pairs say nothing of an accuracy


def flipped(rows: list[dict]) -> list[dict]:
    """Half of the labels the wrong way round."""
    swaps = np.random.default_rng(1).random(len(rows)) < 0.5
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if swap else row
        for row, swap in zip(rows, swaps, strict=True)
    ]


def longer(rows: list[dict]) -> list[dict]:
    """Both sides the same kind of words, and the chosen one longer in all pairs but three in a hundred."""
    rng = np.random.default_rng(2)

    def words(count: int) -> list[dict]:
        return [{"role": "assistant", "content": " ".join(rng.choice(WORDS, count))}]

    found = []
    for row in rows:
        short, long = words(rng.integers(3, 8)), words(rng.integers(10, 25))
        chosen, rejected = (short, long) if rng.random() < 0.03 else (long, short)
        found.append({**row, "chosen": chosen, "rejected": rejected})
    return found


def as_checkpoint(folder: Path, weights: Path) -> CheckpointRef:
    """Trained weights as the evaluation is given them."""
    model = make_model(folder)
    (model / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes())
    return checkpoint_ref(model)


def told_of(folder: Path, rows: list[dict], beta: float, learning_rate: float, epochs: int) -> VerdictOfRun:
    """Mix, cache, train, evaluate -> what a report opens with, under the usual bounds."""
    checkpoint, loss = checkpoint_ref(make_model(folder / "model")), LossConfig(name="dpo", beta=beta)
    data = mix(rows, checkpoint, folder / "data", HELD_OUT)
    reference = run_here(reference_job(folder / "reference", data, checkpoint))
    stage = TinyStage(folder, checkpoint, data, reference)
    job = stage.train_job(
        folder / "train", loss, 8, learning_rate=learning_rate, num_epochs=epochs, global_pairs=8
    )
    after = as_checkpoint(folder / "trained", run_here(job).weights_path)
    assert sha256_file(after.path / "model.safetensors") != checkpoint.fingerprint
    evaluation = stage.evaluate_job(folder / "evaluate", after, num_prompts=6, max_new_tokens=24)
    return verdict_of(run_here(evaluation.model_copy(update={"loss": loss}).at(folder / "evaluate")))


@pytest.mark.parametrize(
    ("rows", "beta", "learning_rate", "epochs", "answer", "signs"),
    [
        (make_rows, 0.1, 3e-3, 2, "Better", set()),
        (lambda count: flipped(make_rows(count)), 0.1, 3e-3, 12, "Cannot tell", {"no_signal"}),
        (make_rows, 1e-4, 2e-2, 4, "Cannot tell", {"displacement"}),
        (make_rows, 0.1, 0.3, 4, "Worse", {"displacement"}),
        (lambda count: longer(make_rows(count)), 0.1, 3e-3, 2, "Cannot tell", {"length_rule"}),
    ],
    ids=["as it should be", "labels flipped", "a tiny beta", "a collapse", "longer is chosen"],
)
def test_what_went_wrong_is_told(tmp_path, rows, beta, learning_rate, epochs, answer, signs):
    found = told_of(tmp_path, rows(NUM_ROWS), beta, learning_rate, epochs)
    assert found.answer == answer
    assert {sign.name for sign in found.signs} >= signs
    assert signs or not found.signs
