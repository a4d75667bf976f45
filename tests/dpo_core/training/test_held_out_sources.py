"""Held-out pairs of a mixture by source, while it trains and after: each figure is that of the source's pairs alone."""

import numpy as np
import pytest

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.keep_best import KeepBest
from dpo_core.contract.metric_names import OF_A_HELD_OUT_SOURCE, of_source
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import read_aligned
from dpo_core.model.load import load_model
from tests.dpo_core.model.test_forward import by_hand
from tests.dpo_core.training.test_held_out import as_checkpoint
from tests.dpo_core.training.test_pair_numbers import stage_of
from tests.step_process import evaluations_in
from tests.tiny_stage import TinyStage, make_rows, run_here

EVERY = EvaluationConfig(every=2)
BETA = 0.5


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory) -> TinyStage:
    """30 rows of two sets, 9 held out."""
    rows = make_rows(30)
    return stage_of(tmp_path_factory.mktemp("two"), {"a.jsonl": rows[:18], "b.jsonl": rows[18:]}, {}, "9")


def test_figures_of_a_source_are_those_of_its_pairs_by_hand(two_sources, tmp_path):
    trained = run_here(two_sources.train_job(tmp_path / "run", evaluation=EVERY))
    rows = evaluations_in(tmp_path / "run")
    after = as_checkpoint(tmp_path / "model", trained)
    evaluated = run_here(two_sources.evaluate_job(tmp_path / "evaluation", after, num_prompts=0)).after
    pairs, model = PairDataset.open(two_sources.data.path, "held_out"), load_model(after)
    reference = read_aligned(two_sources.reference.reference.path, "held_out", pairs.row_keys).sums
    sides = [
        ((p.chosen_ids, p.chosen_trained), (p.rejected_ids, p.rejected_trained))
        for p in map(pairs.__getitem__, range(len(pairs)))
    ]
    logps = np.array([[by_hand(model, *side) for side in both] for both in sides])
    tokens = np.array([[trained[1:].sum() for _, trained in both] for both in sides])
    margins = BETA * ((logps - reference[:, :2]) @ [1, -1])
    assert set(pairs.sources) == {0, 1}
    for number, name in enumerate(pairs.source_names):
        mine = pairs.sources == number
        expected = {
            "loss": np.log1p(np.exp(-margins[mine])).mean(),
            "rewards/accuracies": (margins[mine] > 0).mean(),
            "rewards/margins": margins[mine].mean(),
            "logps/chosen": logps[mine, 0].mean(),
            "logps/rejected": logps[mine, 1].mean(),
            "logps_per_token/chosen": (logps / tokens)[mine, 0].mean(),
            "logps_per_token/rejected": (logps / tokens)[mine, 1].mean(),
        }
        assert set(expected) == set(OF_A_HELD_OUT_SOURCE)
        for metric, value in expected.items():
            for found in (rows[-1], evaluated):
                assert found[of_source(name, metric)] == pytest.approx(value, rel=1e-3, abs=1e-4), metric
    a, b = (rows[-1][of_source(name, "loss")] for name in pairs.source_names)
    assert a != pytest.approx(b, rel=1e-3)


def test_the_best_step_may_be_chosen_by_a_source_s_loss(two_sources, tmp_path):
    keep = KeepBest(metric="by_source/b.jsonl/loss")
    assert keep.direction == "min"
    best = run_here(two_sources.train_job(tmp_path / "run", evaluation=EVERY, keep_best=keep)).best
    rows = evaluations_in(tmp_path / "run")
    assert best.step == min(rows, key=lambda row: row["by_source/b.jsonl/loss"])["step"]
    other = KeepBest(metric="by_source/c.jsonl/loss")
    with pytest.raises(ConfigError, match=r"It measures: .*by_source/b\.jsonl/loss"):
        run_here(two_sources.train_job(tmp_path / "other", evaluation=EVERY, keep_best=other))
