"""Whether a model that is shared out fits a card whole. There is no card here: what is left on it is said."""

import pytest

from dpo_core.contract.jobs import Sharding
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.engine.distributed import start_accelerator
from dpo_core.model.forward import PairScorer
from dpo_core.model.load import load_model
from dpo_core.training import whole_weights
from dpo_core.training.whole_weights import bytes_whole, fits_whole

FSDP = Sharding(kind="fsdp2")


@pytest.fixture
def scorer(stage) -> PairScorer:
    return PairScorer(load_model(stage.checkpoint), "fp32")


@pytest.mark.parametrize(
    ("sharding", "share", "expected"),
    [
        (FSDP, 1.001, True),
        (FSDP, 0.999, False),
        (FSDP, None, False),  # no card
        (Sharding(kind="fsdp2", offload="optimizer_and_parameters"), 10, False),
        (Sharding(kind="fsdp2", tensor_degree=2), 1.001, True),  # all of its part of each matrix
    ],
)
def test_it_does_where_weights_forward_and_answers_fit(
    stage, scorer, tmp_path, monkeypatch, sharding, share, expected
):
    job = stage.evaluate_job(tmp_path, stage.checkpoint).model_copy(update={"sharding": sharding})
    left = None if share is None else round(share * bytes_whole(scorer, job) / 0.9)
    monkeypatch.setattr(whole_weights, "left_on_card", lambda device: left)
    assert fits_whole(scorer, job, start_accelerator()) is expected


def test_what_it_takes_by_hand(stage, scorer, tmp_path):
    """Weights of 4 bytes; keys and values of 4 bytes each, in 2 layers, of the longest pair and of 16 answers."""
    dataset = PairDataset.open(stage.data.path, "held_out")
    longest, config = int(dataset.lengths.sum(axis=1).max()), scorer.model.config
    weights = 4 * scorer.model.num_parameters()
    head = config.hidden_size // config.num_attention_heads if not config.head_dim else config.head_dim
    a_token = 2 * 4 * 2 * config.num_key_value_heads * head
    few, many = (
        bytes_whole(
            scorer, stage.evaluate_job(tmp_path, stage.checkpoint, tokens_per_batch=1, max_new_tokens=new)
        )
        for new in (1, 101)
    )
    assert many - few == 16 * 100 * a_token
    assert few > weights + (longest + 16) * a_token
    assert few < 4 * (weights + (longest + 16) * a_token)


def test_of_two_that_compute_together_each_has_keys_of_half_the_heads(stage, scorer, tmp_path):
    def more(degree: int) -> int:
        of_answer = [
            stage.evaluate_job(tmp_path, stage.checkpoint, max_new_tokens=new).model_copy(
                update={"sharding": Sharding(kind="fsdp2", tensor_degree=degree)}
            )
            for new in (1, 101)
        ]
        few, many = (bytes_whole(scorer, job) for job in of_answer)
        return many - few

    assert more(2) == more(1) / 2
