"""An empty beta is the objective's usual one, and no fingerprint of a training tells the two ways of saying so apart."""

import pytest

from dpo_core.contract.config import OptimConfig, TrainConfig
from dpo_core.contract.jobs import BatchPlan, TrainJob
from dpo_core.contract.loss_config import LossConfig, LossSum, LossTerm
from dpo_core.contract.objectives import OBJECTIVES
from dpo_core.contract.refs import CheckpointRef, DatasetRef

HASH = "a" * 64


def training(**loss: object) -> TrainJob:
    return TrainJob(
        data=DatasetRef(path="/d", fingerprint=HASH),
        loss=LossConfig(**loss),
        checkpoint=CheckpointRef(path="/c", fingerprint=HASH, tokenizer_fingerprint=HASH, source="org/m"),
        optim=OptimConfig(),
        train=TrainConfig(),
        batch=BatchPlan(global_pairs=8, per_device_pairs=4, accumulation=2, num_processes=1),
    )


@pytest.mark.parametrize(
    ("name", "beta", "recorded"),
    [  # as stores hold them, from before beta could be left empty
        ("dpo_norm", 5, "bda42098f23b8b970e373576d7dadb8822e2069b6ec235ea764bbbdc68a7f06d"),
        ("dpo", 0.1, "271cce6519f9e9a97ed6ffa77127016abcdee31b7b61dce8b725c4ed45eaaba4"),
        ("simpo", 2, "f51e3c40bbcf7644b85a88a550f94584f985effdd85137a2d382b7c2c65d7ef9"),
        ("sppo_hard", 0.001, "ebc0d64d0f0dba78b58b1759bcdd1392c2b74df59dd6457e2a89ad36eadc1311"),
    ],
)
def test_a_beta_that_is_written_and_one_that_is_left_empty_are_one_training(name, beta, recorded):
    jobs = [training(name=name, beta=beta), training(name=name), training(name=name, beta=None)]
    assert [job.fingerprint for job in jobs] == [recorded] * 3
    assert TrainJob.model_validate_json(jobs[1].model_dump_json()) == jobs[1]


def test_a_setting_that_came_later_changes_no_fingerprint_until_it_is_set():
    plain = training(name="dpo", beta=0.1).fingerprint
    assert training(name="dpo", beta=0.1, wpo_weighting=False).fingerprint == plain
    assert training(name="dpo", beta=0.1, wpo_weighting=True).fingerprint != plain
    dpop = [training(name="dpop", **own).fingerprint for own in ({}, {"dpop_lambda": 50}, {"dpop_lambda": 5})]
    assert dpop[0] == dpop[1] != dpop[2]


def test_a_job_with_a_sum_of_losses_is_read_back_and_has_a_fingerprint_of_all_of_it():
    def of(*weights: float) -> TrainJob:
        terms = tuple(LossTerm(name=name, weight=w) for name, w in zip(("dpo", "sft"), weights, strict=True))
        return training(name="dpo").model_copy(update={"loss": LossSum(terms=terms)})

    assert TrainJob.model_validate_json(of(0.8, 0.2).model_dump_json()) == of(0.8, 0.2)
    assert len({of(0.8, 0.2).fingerprint, of(0.8, 0.3).fingerprint, training(name="dpo").fingerprint}) == 3


def test_every_objective_has_a_usual_beta_and_the_form_may_leave_it_empty():
    for name, traits in OBJECTIVES.items():
        smoothing = {"label_smoothing": 0.001} if traits.smoothing == "required" else {}
        assert LossConfig(name=name, **smoothing).beta == traits.usual_beta
    schema = LossConfig.model_json_schema()
    assert schema["properties"]["beta"]["anyOf"] == [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1e15},
        {"type": "null"},
    ]
    assert "required" not in schema
