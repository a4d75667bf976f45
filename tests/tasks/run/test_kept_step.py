"""Which weights of a run a person means, found among what its training has left."""

import json
from dataclasses import replace

import pytest

from dpo_core.contract.config import TrainConfig
from dpo_core.contract.errors import ConfigError, StoreError
from dpo_core.contract.keep_best import KeepBest, best_of
from dpo_core.contract.store import sha256_file
from tasks.report.page import what_it_is
from tasks.run.files import RunFiles, StepFiles, read_run_files
from tasks.run.kept_step import kept_step
from tests.tasks.report.made_run import make_run

KEEP = KeepBest(metric="loss")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> RunFiles:
    """A run of 40 steps with checkpoints of 20 and 30, the second in two parts."""
    run = read_run_files(make_run(tmp_path_factory.mktemp("store")))
    parts = ["model.part-00001-of-00002.safetensors", "model.part-00002-of-00002.safetensors"]
    for step, names in {20: ["model.safetensors"], 30: parts}.items():
        folder = run.steps["train"].folder / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(name.encode())
        (folder / "manifest.json").write_text(
            json.dumps({name: sha256_file(folder / name) for name in names})
        )
    return run


def with_best(run: RunFiles, finished: bool) -> RunFiles:
    """The run as one whose best step is its 20th."""
    rows = [{"step": 20, "loss": 0.4}, {"step": 40, "loss": 0.5}]
    files = run.steps["train"]
    job = files.job.model_copy(update={"train": TrainConfig(keep_best=KEEP)})
    result = files.result.model_copy(update={"best": best_of(KEEP, rows, 40)}) if finished else None
    steps = run.steps | {"train": StepFiles(files.folder, job, result, None)}
    return replace(run, steps=steps, evaluations=rows)


def test_a_checkpoint_or_what_came_out(made):
    assert kept_step(made, "20").folder.name == "step-00000020"
    assert kept_step(made, "30").step == 30
    given_out = kept_step(made, "")
    assert (given_out.step, given_out.folder) == (40, made.trained.weights_path)
    assert kept_step(made, "40") == given_out
    assert kept_step(made, "20").weights_fingerprint != kept_step(made, "30").weights_fingerprint


def test_the_best_one_of_a_run_that_is_over_and_of_one_that_goes_on(made):
    over = with_best(made, finished=True)
    assert kept_step(over, "best").folder == over.trained.weights_path
    assert kept_step(over, "") == kept_step(over, "20") == kept_step(over, "best")
    going_on = with_best(made, finished=False)
    assert kept_step(going_on, "best").folder.name == "step-00000020"
    with pytest.raises(ConfigError, match=r"no weights of step 40 any more\. There are those of: 20, 30"):
        kept_step(over, "40")  # the last step's weights are gone: the best one's came out


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("25", "There are those of: 20, 30, 40. train.keep_checkpoints says how many stay"),
        ("newest", "expected the number of a step, or best"),
        ("best", "has no best step: train.keep_best is not set"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(made, asked, message):
    with pytest.raises(ConfigError, match=message):
        kept_step(made, asked)


def test_a_damaged_one_is_refused(made):
    weights = made.steps["train"].folder / "checkpoints" / "step-00000020" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(b"x" + content[1:])
    with pytest.raises(StoreError, match="is damaged"):
        kept_step(made, "20")
    weights.write_bytes(content)


def test_a_run_that_came_to_no_training_has_none(made):
    with pytest.raises(ConfigError, match="has come to no training"):
        kept_step(replace(made, steps={}), "")


def test_the_report_says_which_step_was_exported(made):
    assert "the weights of step 20, the best of 2 evaluations" in what_it_is(with_best(made, finished=True))
    assert "the best of" not in what_it_is(made)
