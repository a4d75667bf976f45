"""Memory that is refused, wherever it is: the kind ``oom``, with the batch's shape where there is one, and what to lower."""

import pytest
import torch

from dpo_core.__main__ import main
from dpo_core.contract.errors import OutOfMemory
from dpo_core.contract.results import read_error
from dpo_core.data.pair_batch import collate
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.model.forward import PairScorer, choose_layout, memory_for, probe_pairs
from dpo_core.model.load import load_model
from tests.tiny_stage import reference_job


def refuse_memory(*_, **__):
    torch.empty(1 << 50)


def test_out_of_memory_says_what_to_lower(stage):
    batch = collate([PairDataset.open(stage.data.path, "train")[3]], [3], "prefix_sharing")
    shape = r"1 pairs, 1 rows of \d+ tokens \(data rows \[3\]\)\. Lower train.tokens_per_forward"
    with pytest.raises(OutOfMemory, match=shape), memory_for(batch):
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="shapes differ"), memory_for(batch):
        raise RuntimeError("shapes differ")


def test_memory_that_a_comparison_of_layouts_lacks_is_not_taken_for_a_layout_that_does_not_work(
    stage, monkeypatch
):
    dataset = PairDataset.open(stage.data.path, "train")
    scorer = PairScorer(load_model(stage.checkpoint), "fp32")
    monkeypatch.setattr(type(scorer.model), "forward", refuse_memory)
    with pytest.raises(OutOfMemory, match=r"Lower train\.tokens_per_forward"):
        choose_layout(scorer, probe_pairs(dataset), "packed", torch.device("cpu"))


@pytest.mark.parametrize(
    ("step", "place", "told"),
    [
        ("reference", "dpo_core.model.forward.PairScorer._scores", "data rows"),
        ("train", "dpo_core.engine.plain.PlainEngine.step", "outside of a forward"),
    ],
)
def test_memory_that_is_refused_anywhere_in_a_step_is_an_oom(stage, tmp_path, monkeypatch, step, place, told):
    job = (
        reference_job(tmp_path / "job", stage.data, stage.checkpoint)
        if step == "reference"
        else stage.train_job(tmp_path, "simpo")
    )
    monkeypatch.setattr(place, refuse_memory)
    job.write()
    assert main([job.step, "--job", str(job.out_dir / "job.json")]) == OutOfMemory.exit_code
    report = read_error(job)
    assert report.kind == "oom"
    assert told in report.message
