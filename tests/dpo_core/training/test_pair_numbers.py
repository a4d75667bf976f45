"""Weights and margins of pairs, and metrics by source, in whole runs: by hand, whatever the cut and the processes."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dpo_core.contract.data_jobs import MixJob
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.loss_config import LossConfig, LossSum, LossTerm
from dpo_core.contract.metric_names import OF_A_HELD_OUT_SOURCE
from dpo_core.contract.objectives import OBJECTIVES
from dpo_core.contract.refs import ResolvedSource
from dpo_core.contract.store import fingerprint
from dpo_core.data.pair_dataset import PairDataset
from tests.step_process import metrics_of, run_ranks
from tests.tiny_models import make_model
from tests.tiny_stage import TinyStage, checkpoint_ref, make_rows, reference_job, run_here

LOG2 = math.log(2)
COLUMNS = {"weight": "w", "margin": "m"}


def stage_of(root, sources: dict[str, list[dict]], columns: dict[str, str], held_out: str) -> TinyStage:
    """A stage over several sets, reference values of all rows included."""
    root.mkdir(parents=True, exist_ok=True)
    checkpoint, resolved = checkpoint_ref(make_model(root / "model")), []
    for name, rows in sources.items():
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = fingerprint([name, rows])
        resolved.append(ResolvedSource(label=name, path=root / name, content=content, columns=columns))
    data = run_here(
        MixJob(
            sources=tuple(resolved),
            tokenizer_path=checkpoint.path,
            tokenizer_fingerprint=checkpoint.tokenizer_fingerprint,
            held_out=held_out,
            num_workers=1,
            cache_dir=root / "cache",
        ).at(root / "mix")
    ).data
    return TinyStage(root, checkpoint, data, run_here(reference_job(root / "reference", data, checkpoint)))


def numbered(rows: list[dict]) -> list[dict]:
    """The rows with weights 1 to 5 and margins 0 to 1.5."""
    return [row | {"w": 1 + i % 5, "m": 0.5 * (i % 4)} for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def weighed(tmp_path_factory) -> TinyStage:
    """22 rows of two sets, 4 held out."""
    rows = numbered(make_rows(22))
    root = tmp_path_factory.mktemp("weighed")
    return stage_of(root, {"a.jsonl": rows[:15], "b.jsonl": rows[15:]}, COLUMNS, "4")


SUM = LossSum(terms=(LossTerm(name="dpo", beta=0.5, weight=0.8), LossTerm(name="sft", weight=0.2)))
COMPARED = ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen")


def run(stage: TinyStage, folder, loss=SUM, start=run_here, **others):
    """Two epochs of two steps of 11 and 7 pairs: of two processes the shares differ."""
    return start(stage.train_job(folder, loss, global_pairs=11, num_epochs=2, **others))


def assert_same(folder, expected) -> None:
    ours, theirs = metrics_of(folder), metrics_of(expected)
    assert len(ours) == len(theirs) == 4
    by_source = [name for name in theirs[0] if name.startswith("by_source/")]
    assert len(by_source) == 4
    for name in (*COMPARED, *by_source):
        # While the policy is its reference, margins are rounding, which decides ties.
        first = 2 if "accuracies" in name else 0
        a, b = ([step.get(name) for step in steps[first:]] for steps in (ours, theirs))
        assert a == pytest.approx(b, rel=1e-3, abs=2e-5), name


def test_the_cut_of_a_batch_does_not_show(weighed, tmp_path):
    whole = run(weighed, tmp_path / "11", per_device=11)
    for at_once in (4, 1):
        result = run(weighed, tmp_path / str(at_once), per_device=at_once)
        assert result.job_fingerprint == whole.job_fingerprint
        assert_same(tmp_path / str(at_once), tmp_path / "11")


@pytest.mark.integration
def test_two_processes_train_what_one_does(weighed, tmp_path):
    one = run(weighed, tmp_path / "one", per_device=11)
    two = run(weighed, tmp_path / "two", start=run_ranks, per_device=2, processes=2)
    assert_same(tmp_path / "two", tmp_path / "one")
    expected = load_file(one.weights_path / "model.safetensors")
    for name, tensor in load_file(two.weights_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_the_first_step_by_hand(weighed, tmp_path):
    """The policy is its reference: dpo's loss is log(1 + e^margin), sft's what the log-probabilities say."""
    dataset = PairDataset.open(weighed.data.path, "train")
    weights, margins = dataset.weights[:11].astype(float), dataset.margins[:11].astype(float)
    assert len(set(weights)) > 2
    assert len(set(margins)) > 2
    run(weighed, tmp_path, LossConfig(name="dpo", beta=0.5), max_steps=1)
    expected = (weights * np.log1p(np.exp(margins))).sum() / weights.sum()
    (step,) = metrics_of(tmp_path)
    assert step["loss"] == pytest.approx(expected, rel=1e-4)
    assert step["loss"] != pytest.approx(LOG2, rel=0.1)
    assert step["pairs"] == 11


@pytest.fixture(scope="module")
def heavy_and_twice(tmp_path_factory) -> tuple[TinyStage, TinyStage]:
    """Six rows, the first with weight 2; and the same without weights, the first of them twice."""
    root, rows = tmp_path_factory.mktemp("heavy"), make_rows(6)
    weights = [row | {"w": 2 if i == 0 else 1} for i, row in enumerate(rows)]
    return (
        stage_of(root / "a", {"rows.jsonl": weights}, {"weight": "w"}, "0"),
        stage_of(root / "b", {"rows.jsonl": [rows[0], *rows]}, {}, "0"),
    )


def settings_of(name: str) -> dict[str, object]:
    """What an objective is tried with: rewards of some size, so that what a wrong mean does is seen."""
    smoothing = {"label_smoothing": 0.1} if OBJECTIVES[name].smoothing != "no" else {}
    return {"name": name, "beta": 0.5, **smoothing}


WEIGHABLE = [name for name, traits in OBJECTIVES.items() if not traits.whole_batch]


# Those whose means are not over pairs, and the one that weighs them itself; the others with the integration tests.
OFTEN = ("bco_pair", "sft", "wpo")


@pytest.mark.parametrize(
    "name",
    [
        "dpo + sft",
        *(pytest.param(name, marks=() if name in OFTEN else pytest.mark.integration) for name in WEIGHABLE),
    ],
)
def test_weight_2_is_a_row_that_is_there_twice(heavy_and_twice, tmp_path, name):
    """Steps over all rows; sft averages over the tokens of both, bco_pair's mean of earlier steps is of both, too."""
    loss = LossConfig(**settings_of(name)) if name in OBJECTIVES else SUM
    steps = []
    for stage in heavy_and_twice:
        folder = tmp_path / stage.root.name
        run_here(stage.train_job(folder, loss, per_device=8, global_pairs=8, num_epochs=2))
        steps.append(metrics_of(folder))
    for figure in ("loss", "grad_norm"):
        ours, theirs = ([step[figure] for step in of] for of in steps)
        assert len(ours) == 2
        assert ours == pytest.approx(theirs, rel=1e-3), figure


def test_weights_make_no_sense_where_a_loss_is_of_the_whole_batch():
    assert set(OBJECTIVES) - set(WEIGHABLE) == {"aot", "aot_pair"}


def test_the_held_out_loss_is_weighted_and_sources_are_told_apart(weighed, tmp_path):
    job = weighed.evaluate_job(tmp_path, weighed.checkpoint, num_prompts=0)
    result = run_here(job)
    dataset = PairDataset.open(weighed.data.path, "held_out")
    weights, margins = dataset.weights.astype(float), dataset.margins.astype(float)
    expected = (weights * np.log1p(np.exp(margins))).sum() / weights.sum()
    assert result.before["loss"] == pytest.approx(expected, rel=1e-5)
    present = {dataset.source_names[number] for number in dataset.sources}
    assert {name for name in result.before if name.startswith("by_source/")} == {
        f"by_source/{source}/{metric}" for source in present for metric in OF_A_HELD_OUT_SOURCE
    }
    for number, source in enumerate(dataset.source_names):
        w, m = (column[dataset.sources == number] for column in (weights, margins))
        expected = (w * np.log1p(np.exp(m))).sum() / w.sum()
        assert result.before[f"by_source/{source}/loss"] == pytest.approx(expected, rel=1e-5)
    assert all(result.before[f"by_source/{source}/rewards/accuracies"] == 0.5 for source in present)


def test_a_job_whose_objective_would_ignore_them_is_refused(weighed, tmp_path):
    for name, what in (("aot", "weights"), ("apo_zero", "margins")):
        with pytest.raises(ConfigError, match=f"pairs have {what}, which {name} would ignore"):
            run(weighed, tmp_path / name, LossConfig(name=name))
