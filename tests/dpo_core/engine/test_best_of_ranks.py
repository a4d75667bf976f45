"""The best step of a run on several ranks: its weights come out, whole, from whichever parts the ranks hold."""

import pytest
from safetensors.torch import load_file

from dpo_core.contract.checkpoint_files import RUN_WEIGHTS
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.keep_best import KeepBest
from tests.dpo_core.engine.test_sharded import SHARDINGS
from tests.step_process import evaluations_in, run_ranks
from tests.whole_tensors import whole_tensors

pytestmark = pytest.mark.integration
BEST, LAST = 3, 9


@pytest.mark.parametrize(
    "name", ["plain", "zero2-offload", "zero3", "zero3-offload", "fsdp2", "fsdp2-offload"]
)
def test_two_ranks_give_the_bits_of_the_best_step(stage, tmp_path, name):
    job = stage.train_job(
        tmp_path,
        per_device=1,
        processes=2,
        checkpoint_every=1000,
        checkpoint_every_minutes=None,
        sharding=SHARDINGS[name],
        evaluation=EvaluationConfig(every=3),
        keep_best=KeepBest(metric="rewards/margins", mode="min"),
    )
    result = run_ranks(job)
    margins = {one["step"]: one["rewards/margins"] for one in evaluations_in(tmp_path)}
    assert min(margins, key=margins.__getitem__) == BEST, margins  # else this asks nothing
    assert result.best is not None
    assert (result.best.step, result.best.value, result.best.last_step) == (BEST, margins[BEST], LAST)
    best, taken = (
        whole_tensors(tmp_path / "checkpoints" / f"step-{BEST:08d}", RUN_WEIGHTS),
        load_file(result.weights_path / "model.safetensors"),
    )
    assert taken.keys() == best.keys()
    for tensor, values in taken.items():
        assert values.equal(best[tensor]), tensor
