"""Which evaluation is the best, and when there have been enough: both of the rows alone."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.contract.config import TrainConfig
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import BatchPlan, TrainJob
from dpo_core.contract.keep_best import KeepBest, best_of, check_metric, is_out_of_patience
from dpo_core.contract.loss_config import LossConfig
from tests.dpo_core.contract.test_job_fingerprints import DATA, SFT

ACCURACY = KeepBest(metric="rewards/accuracies")


def rows(*values: float, name: str = "rewards/accuracies") -> list[dict[str, float]]:
    return [{"step": 10 * number, name: value} for number, value in enumerate(values, start=1)]


def test_the_best_is_the_first_of_equals_and_what_is_no_number_never_is():
    best = best_of(ACCURACY, rows(0.5, 0.8, math.nan, 0.8, math.inf, 0.7), planned_steps=90)
    assert best is not None
    assert (best.step, best.value, best.last_step, best.last_value) == (20, 0.8, 60, 0.7)
    assert best.stopped_early
    assert best.in_words == (
        "the weights of step 20, the best of 6 evaluations by held-out rewards/accuracies (highest: 0.8, 0.7 at the last "
        "one); training stopped early, after 60 of 90 steps"
    )
    assert best_of(ACCURACY, rows(math.nan, math.inf), 10) is None
    assert best_of(ACCURACY, [], 10) is None
    assert best_of(ACCURACY, rows(0.5, name="loss"), 10) is None


def test_less_is_better_for_a_loss_and_where_the_recipe_says_so():
    assert best_of(KeepBest(metric="loss"), rows(0.5, 0.4, 0.6, name="loss"), 30).step == 20
    assert best_of(KeepBest(metric="rewards/accuracies", mode="min"), rows(0.5, 0.4, 0.6), 30).step == 20
    assert KeepBest(metric="by_source/a set/rewards/margins").direction == "max"
    with pytest.raises(ConfigError, match="neither more nor less is better"):
        KeepBest(metric="logps/chosen").direction  # noqa: B018
    assert KeepBest(metric="logps/chosen", mode="max").direction == "max"


def test_patience_counts_evaluations_in_a_row_and_small_gains_are_none():
    def ends(*values: float, **settings: float) -> bool:
        return is_out_of_patience(KeepBest(metric="rewards/accuracies", **settings), rows(*values))

    assert not ends(0.8, 0.7, 0.7, 0.7)
    assert ends(0.8, 0.7, 0.7, patience=2)
    assert not ends(0.8, 0.7, 0.9, 0.7, patience=2)
    assert not ends(0.8, patience=1)
    assert ends(0.8, 0.805, 0.809, patience=2, min_delta=0.01)
    assert not ends(0.8, 0.805, 0.811, patience=2, min_delta=0.01)
    assert ends(math.nan, math.nan, patience=2)  # nothing can be chosen: more of it is no use


@given(values=st.lists(st.sampled_from([0.1, 0.2, 0.3, math.nan]), max_size=8), cut=st.integers(0, 8))
@settings(max_examples=30)
def test_what_is_known_after_a_row_is_not_changed_by_later_ones_that_are_no_better(values, cut):
    """A run that goes on sees the rows up to its checkpoint: the best of them stays it until a better one comes."""
    before, after = best_of(ACCURACY, rows(*values[:cut]), 99), best_of(ACCURACY, rows(*values), 99)
    if before is not None:
        assert after is not None
        assert after.step == before.step or after.value > before.value
    known = [value for value in values if value == value]
    assert (after.value if after else None) == (max(known) if known else None)


def test_a_metric_that_is_not_measured_is_told_with_those_that_are():
    check_metric(KeepBest(metric="by_source/any/rewards/accuracies"))  # not known before the mixture
    for metric in ("accuracy", "eval/loss", "grad_norm"):
        with pytest.raises(
            ConfigError, match=r"does not measure here. It measures: loss, rewards/accuracies, "
        ):
            check_metric(KeepBest(metric=metric))
    with pytest.raises(ConfigError, match="by_source/b/rewards/accuracies"):
        check_metric(KeepBest(metric="by_source/a/rewards/accuracies"), ("by_source/b/rewards/accuracies",))


def test_what_is_evaluated_is_content_only_where_the_best_is_kept():
    def of(keep: KeepBest | None, **evaluation: object) -> str:
        return TrainJob(
            data=DATA,
            checkpoint=SFT,
            loss=LossConfig(),
            optim={},
            train=TrainConfig(keep_best=keep),
            batch=BatchPlan(global_pairs=8, per_device_pairs=1, accumulation=8, num_processes=1),
            evaluation=EvaluationConfig(**evaluation),
        ).fingerprint

    assert of(None) == of(None, every=5)
    assert len({of(None), of(ACCURACY, every=5), of(ACCURACY, every=6)}) == 3
    assert of(ACCURACY, every=5) != of(ACCURACY.model_copy(update={"patience": 2}), every=5)
    assert of(ACCURACY, every=5) == of(ACCURACY, every=5, num_samples_shown=3)
