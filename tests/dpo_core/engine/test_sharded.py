"""ZeRO-1, 2, 3 and FSDP2, with offload, each as two real processes over gloo: one process's run from shared-out parts.

Two plain processes are killed here as well, and share a reference pass and an evaluation; their training is in
``test_two_processes``.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from dpo_core.contract.checkpoint_files import RUN_OPTIMIZER, RUN_WEIGHTS, files_of, part_of
from dpo_core.contract.errors import StepCrashed
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import EvaluateResult, ExportJob, ReferenceResult, Sharding, TrainJob, TrainResult
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.metrics_file import EVALUATIONS_FILE, METRICS_FILE
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.results import read_error, read_result
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import read_aligned
from dpo_core.engine.checkpoint import newest_checkpoint
from dpo_core.model.load import load_model
from dpo_core.training.earlier_evaluations import MEASURED_FILE
from tasks.launch.killed_rank import KilledRank
from tests.dpo_core.training.test_resume import assert_same_run
from tests.programs.killed_ranks import KILL_AT
from tests.programs.lost_ranks import LOSE_BY
from tests.random_moments import chance
from tests.step_process import evaluations_in, metrics_of, run_ranks, start_ranks, wait_for_death
from tests.tiny_models import make_model
from tests.tiny_stage import TinyStage, checkpoint_ref, make_rows, make_sets, mix, reference_job, run_here
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.whole_tensors import whole_tensors

pytestmark = pytest.mark.integration

# fp32 sums in another order; 18 AdamW steps at 1e-3 turn 1e-7 of a gradient into at most this much of a weight.
WEIGHT_NOISE = 2e-6
MEASURED = ("pairs", "loss", "rewards/margins", "logps/chosen", "answers/mean_words", "kl/per_token")
# Of answers that are drawn. A draw takes the token in whose share of the probability a random number falls, and of some
# hundred draws among 384 shares one comes as near to a border as 1e-7, where float noise decides: one of the figures may be
# of another answer.
DRAWN, MOST_OTHER_DRAWS = "kl/per_token", 1
PLAIN = Sharding()
BACK_ENDS = {
    "zero1": Sharding(kind="zero1"),
    "zero2-offload": Sharding(kind="zero2", offload="optimizer"),
    "zero3": Sharding(kind="zero3"),
    "fsdp2": Sharding(kind="fsdp2"),
    "zero3-offload": Sharding(kind="zero3", offload="optimizer_and_parameters"),
    "fsdp2-replicas": Sharding(kind="fsdp2", degree=2),
}
SPLITTING = ("zero3", "fsdp2")
# Two plain processes, and what is offloaded in another way: no whole run of their own is compared with one process.
SHARDINGS = {
    "plain": PLAIN,
    **BACK_ENDS,
    "zero1-offload": Sharding(kind="zero1", offload="optimizer"),
    "zero3-optimizer-offload": Sharding(kind="zero3", offload="optimizer"),
    "fsdp2-offload": Sharding(kind="fsdp2", offload="optimizer_and_parameters"),
}


def job_in(stage: TinyStage, folder: Path, sharding: Sharding = PLAIN, processes: int = 2) -> TrainJob:
    """18 steps of 4 pairs, two microbatches a process and step, a checkpoint after every fifth step. In the last batch of an
    epoch, of 2 pairs, each process has one pair. WPO's weights take all that a forward can give."""
    return stage.train_job(
        folder,
        LossConfig(name="dpo", beta=0.5, wpo_weighting=True),
        per_device=1,
        processes=processes,
        num_epochs=2,
        checkpoint_every=5,
        keep_checkpoints=9,
        gradient_checkpointing=True,
        sharding=sharding,
        evaluation=EvaluationConfig(
            every=8, answers_every=1, num_prompts=3, max_new_tokens=4, measure_kl=True
        ),
        sets=make_sets({"safety": 3, "maths": 1}, stage.checkpoint, stage.root / "sets"),
    )


@pytest.fixture(scope="module")
def odd_stage(tmp_path_factory) -> TinyStage:
    """A model whose sizes two ranks cannot share equally: odd hidden and inner sizes, embeddings not tied."""
    return TinyStage.make(
        tmp_path_factory.mktemp("odd"),
        hidden_size=33,
        intermediate_size=51,
        head_dim=8,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )


@dataclass
class Runs:
    """Whole runs by back end, made when first asked for."""

    stage: TinyStage
    root: Path

    def __getitem__(self, name: str) -> TrainResult:
        folder = self.root / name
        if name == "alone":
            job = job_in(self.stage, folder, processes=1)
            return read_result(job) or run_here(job)
        job = job_in(self.stage, folder, SHARDINGS[name], num_ranks(name))
        return read_result(job) or run_ranks(
            job, num_ranks(name), module="tests.programs.ranks_that_tell_what_they_hold"
        )


def num_ranks(name: str) -> int:
    """Two copies of the model over two ranks each, one over two, or one over four."""
    return 4 if SHARDINGS[name].degree or name == "zero3-offload" else 2


def num_shards(name: str) -> int:
    return SHARDINGS[name].degree or num_ranks(name)


@pytest.fixture(scope="module")
def runs(stage, tmp_path_factory) -> Runs:
    return Runs(stage, tmp_path_factory.mktemp("runs"))


def far_apart(
    ours: Sequence[float], theirs: Sequence[float], rel: float = 1e-4, abs: float = 1e-5
) -> list[tuple[float, float]]:
    """Those of the numbers that are no float noise apart, with their twins."""
    both = zip(ours, theirs, strict=True)
    return [(one, other) for one, other in both if one != pytest.approx(other, rel=rel, abs=abs)]


def assert_near(result: TrainResult, expected: TrainResult, weight_noise: float = WEIGHT_NOISE) -> None:
    """The same weights and metrics within float noise."""
    ours, theirs = (load_file(run.weights_path / "model.safetensors") for run in (result, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=0, atol=weight_noise, msg=lambda text, name=name: f"{name}: {text}"
        )
    ours, theirs = (metrics_of(run.metrics_path.parent) for run in (result, expected))
    for name in ("step", "pairs", "loss", "grad_norm", "learning_rate", "rewards/margins", "logps/chosen"):
        assert [step[name] for step in ours] == pytest.approx(
            [step[name] for step in theirs], rel=1e-4, abs=1e-5
        ), name
    ours, theirs = (evaluations_in(run.metrics_path.parent) for run in (result, expected))
    assert [one["step"] for one in ours] == [0, 8, 16, 18]
    other_draws = 0
    for name in MEASURED:
        for of in (name, f"held_out/safety/{name}", f"held_out/maths/{name}"):
            first = 0 if name in ("answers/mean_words", DRAWN) else 1  # before the first step: answers alone
            far = far_apart([one[of] for one in ours[first:]], [one[of] for one in theirs[first:]])
            assert name == DRAWN or not far, (of, far)
            other_draws += len(far)
    assert other_draws <= MOST_OTHER_DRAWS
    assert theirs[0]["kl/per_token"] == 0 != theirs[-1]["kl/per_token"]


@pytest.mark.parametrize("name", BACK_ENDS)
def test_the_weights_are_those_of_one_process(runs, name):
    result, alone = runs[name], runs["alone"]
    assert result.job_fingerprint == alone.job_fingerprint
    assert_near(result, alone)
    assert result.guard["largest_difference_per_token"] < 1e-5
    assert result.checks["fit_tokens"] == alone.checks["fit_tokens"] > 0
    assert (result.trained_parameters, result.all_parameters) == (
        alone.trained_parameters,
        alone.all_parameters,
    )


@pytest.mark.parametrize("name", BACK_ENDS)
def test_each_rank_holds_its_part_and_no_more(runs, name):
    total = runs[name].all_parameters
    kind = BACK_ENDS[name].kind
    parts = num_shards(name)
    for rank in range(num_ranks(name)):
        held = json.loads((runs.root / name / f"held-{rank}.json").read_text())
        assert held["distributed_type"] == ("FSDP" if kind == "fsdp2" else "DEEPSPEED")
        assert (held["world"], held["offload"]) == (num_ranks(name), BACK_ENDS[name].offload)
        assert held["weights"] == pytest.approx(total / parts if kind in SPLITTING else total, rel=0.01)
        assert held["moments"] == pytest.approx(2 * total / parts, rel=0.01)
        assert (held["zero3_parameters"] > 0) == (kind == "zero3")
        assert (held["dtensors"] > 0) == (kind == "fsdp2")
        if kind in ("zero1", "zero2"):
            assert held["gradients_partitioned"] is (kind == "zero2")


@pytest.mark.parametrize("name", ["plain", *SPLITTING])
def test_killed_at_any_moment_and_resumed_it_gives_the_same_bits(stage, runs, tmp_path, name):
    """kill -9 of all processes at a random moment after the first step: between steps, in a step, in a checkpoint."""
    job = job_in(stage, tmp_path / "run", SHARDINGS[name])
    kill_at_some_moment(job, chance())
    found = newest_checkpoint(job.out_dir / "checkpoints", job.fingerprint)
    result = run_ranks(job)
    assert result.resumed_from_step == (found[1].step if found else None)
    assert_same_run(result, runs[name])


@pytest.mark.parametrize("name", SPLITTING)
def test_killed_while_it_writes_a_checkpoint_or_the_last_weights_it_gives_the_same_bits(
    stage, runs, tmp_path, monkeypatch, name
):
    """kill -9 of the rank that writes, at a random touch of its files; the other rank is left in a collective."""
    job = job_in(stage, tmp_path, SHARDINGS[name])
    monkeypatch.setenv(KILL_AT, "0")
    counted = job.at(tmp_path / "counted")
    run_ranks(counted, module="tests.programs.killed_ranks")
    touches = int((counted.out_dir / "touches").read_text())
    assert touches > 30
    monkeypatch.setenv(KILL_AT, str(chance().randint(1, touches)))
    ranks = start_ranks(job, 2, "tests.programs.killed_ranks")
    assert ranks.wait(PATIENCE_SECONDS) != 0
    assert read_result(job) is None, "the run was over before the kill"
    wait_for_death(ranks)
    result = run_ranks(job)
    assert_same_run(result, runs[name])
    assert not list(job.out_dir.rglob("*.aside")), "a half-written file was left behind"


@pytest.mark.parametrize(
    ("name", "signal_name"),
    [
        ("fsdp2", "SIGKILL"),
        ("fsdp2", "SIGSTOP"),
        ("fsdp2-replicas", "SIGKILL"),
        ("fsdp2-replicas", "SIGSTOP"),
        ("zero3", "SIGSTOP"),
        ("plain", "SIGSTOP"),
    ],
)
def test_a_rank_that_is_lost_ends_the_step_as_one_to_be_tried_again(
    stage, tmp_path, monkeypatch, name, signal_name
):
    """Neither a defect of ours, nor an hour's wait: a rank that stands still keeps its connections open. Of replicas some
    ranks exchange nothing with the lost one but gradients, or nothing at all."""
    monkeypatch.setenv(LOSE_BY, signal_name)
    ranks = num_ranks(name)
    assert_lost_rank_is_said(job_in(stage, tmp_path, SHARDINGS[name], ranks), ranks, signal_name)


def assert_lost_rank_is_said(job: TrainJob, ranks: int, signal_name: str) -> None:
    """The step, whose last rank is lost by that signal, ends as one to be tried again, and says why."""
    leader = start_ranks(job, ranks, "tests.programs.lost_ranks")
    wait_until(lambda: read_error(job) is not None)
    assert leader.wait(PATIENCE_SECONDS) != 0
    report = read_error(job)
    assert report.kind == StepCrashed.kind, report.message
    seen = KilledRank()
    for line in (job.out_dir / "log.txt").read_text().splitlines():
        seen.take(line)
    killed = f"rank {ranks - 1} was killed by signal 9 (SIGKILL)."
    assert seen.cause() == (killed if signal_name == "SIGKILL" else "")
    if signal_name == "SIGSTOP":
        assert f"Process {ranks - 1} of this step has not been heard of for 10 s" in report.message


def kill_at_some_moment(job: TrainJob, moments: random.Random, processes: int = 2) -> None:
    """kill -9 at a random moment of 18 steps. A run that was over by then, on a busy machine, is begun anew and killed
    earlier."""
    for latest_step in (15, 10, 5, 1):
        leader, after = start_ranks(job, processes), moments.randint(1, latest_step)
        wait_until(
            lambda: leader.poll() is not None or len(metrics_of(job.out_dir)) >= after,  # noqa: B023, called here
            f"{after} steps",
            pause=0.002,
        )
        time.sleep(moments.uniform(0, 0.1))
        leader.send_signal(signal.SIGKILL)  # the ranks die with it
        code = leader.wait(PATIENCE_SECONDS)
        wait_for_death(leader)
        if code == -signal.SIGKILL and read_result(job) is None:
            return
        assert code in (0, -signal.SIGKILL), (job.out_dir / "log.txt").read_text()[-3000:]
        shutil.rmtree(job.out_dir)
    pytest.fail("the run was over before the kill, time after time")


def continued(
    stage: TinyStage, runs: Runs, folder: Path, begun_with: str, sharding: Sharding, processes: int
) -> TrainJob:
    """A job that finds the checkpoint of step 10 that another back end wrote."""
    shutil.copytree(
        runs[begun_with].weights_path.parent / "checkpoints" / "step-00000010",
        folder / "checkpoints" / "step-00000010",
    )
    return job_in(stage, folder, sharding, processes)


def take_history(run: TrainResult, folder: Path) -> None:
    """Put what a run has written down of its steps into the folder of one that goes on from it."""
    for name in (METRICS_FILE, EVALUATIONS_FILE):
        shutil.copyfile(run.metrics_path.with_name(name), folder / name)


def test_a_sharded_run_goes_on_in_one_plain_process(stage, runs, tmp_path):
    for name in SPLITTING:
        job = continued(stage, runs, tmp_path / name, name, PLAIN, 1)
        take_history(runs[name], job.out_dir)
        result = run_here(job)
        assert result.resumed_from_step == 10
        assert_near(result, runs["alone"])


@pytest.mark.parametrize("name", SPLITTING)
def test_the_start_answers_anew_where_a_run_goes_on_with_other_prompts(stage, runs, tmp_path, name):
    """All ranks together, before the checkpoint is loaded; the weights that come out are those of the whole run."""
    other = EvaluationConfig(every=8, answers_every=1, num_prompts=2, max_new_tokens=6, measure_kl=True)
    starts = {}
    for begun_with, processes in (("alone", 1), (name, 2)):
        folder = tmp_path / begun_with
        job = continued(stage, runs, folder, begun_with, SHARDINGS.get(begun_with, PLAIN), processes)
        job = job.model_copy(update={"evaluation": other}).at(folder)
        take_history(runs[begun_with], folder)
        shutil.copyfile(runs[begun_with].metrics_path.with_name(MEASURED_FILE), folder / MEASURED_FILE)
        result = run_here(job) if processes == 1 else run_ranks(job, processes)
        assert result.resumed_from_step == 10
        starts[begun_with] = evaluations_in(folder)
    assert_same_run(result, runs[name])
    other_draws = 0
    for row, expected in zip(starts[name], starts["alone"], strict=True):
        assert row.keys() == expected.keys()
        for metric in {"answers/mean_words", DRAWN} & row.keys():
            far = far_apart([row[metric]], [expected[metric]], rel=1e-3, abs=1e-4)
            assert metric == DRAWN or not far, (metric, far)
            other_draws += len(far)
    assert other_draws <= MOST_OTHER_DRAWS
    assert ["answers/mean_words" in row for row in starts[name]] == [True, False, True, True]


@pytest.mark.parametrize(
    ("begun_with", "name", "processes"),
    [
        ("alone", "zero3-optimizer-offload", 2),
        ("fsdp2-replicas", "fsdp2-offload", 2),
        ("fsdp2", "zero2-offload", 2),
        ("zero2-offload", "zero1-offload", 2),
        ("zero3", "zero3", 1),
        ("alone", "fsdp2", 4),
        ("fsdp2", "zero3", 4),
    ],
)
def test_a_run_goes_on_with_another_back_end_or_number_of_processes(
    stage, runs, tmp_path, begun_with, name, processes
):
    job = continued(stage, runs, tmp_path, begun_with, SHARDINGS[name], processes)
    take_history(runs[begun_with], tmp_path)
    result = run_ranks(job, processes, module="tests.programs.ranks_that_tell_what_they_hold")
    assert result.resumed_from_step == 10
    assert_near(result, runs["alone"])
    ours, theirs = (
        run.weights_path.parent / "checkpoints" / "step-00000015" for run in (result, runs["alone"])
    )
    for file in (RUN_WEIGHTS, RUN_OPTIMIZER):
        parts = {part_of(file, rank, processes) for rank in range(processes)}
        assert {path.name for path in files_of(ours, file)} == parts, "every rank writes, and only its own"
        torch.testing.assert_close(
            whole_tensors(ours, file), load_file(theirs / file), rtol=1e-4, atol=WEIGHT_NOISE
        )
    assert json.loads((tmp_path / "held-0.json").read_text())["offload"] == SHARDINGS[name].offload


@pytest.mark.parametrize("name", SPLITTING)
def test_a_model_of_odd_sizes_is_trained_and_exported(odd_stage, tmp_path, monkeypatch, name):
    """Padding of parts, untied embeddings; no compiler within reach; the export is loaded by stock transformers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_odd_sizes_fit(odd_stage, job_in(odd_stage, tmp_path / "sharded", SHARDINGS[name]))


def assert_odd_sizes_fit(odd_stage: TinyStage, job: TrainJob) -> None:
    """The job of two processes gives the weights of one, and stock transformers loads them."""
    alone = run_here(job_in(odd_stage, job.out_dir.with_name("alone"), processes=1))
    result = run_ranks(job)
    assert_near(result, alone)
    exported, trained = exported_and_trained(result, odd_stage.checkpoint, job.out_dir.with_name("export"))
    for key, parameter in exported.named_parameters():
        assert torch.equal(parameter, trained[key][: len(parameter)]), key


def exported_and_trained(
    result: TrainResult, checkpoint: CheckpointRef, folder: Path
) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """What stock transformers loads of a run's export, and the weights that the run ended with."""
    export = run_here(
        ExportJob(
            weights_path=result.weights_path,
            weights_fingerprint=result.weights_fingerprint,
            checkpoint=checkpoint,
            precision="fp32",
        ).at(folder)
    )
    exported = CheckpointRef(path=export.path, fingerprint="x", tokenizer_fingerprint="x", source="export")
    return load_model(exported), load_file(result.weights_path / "model.safetensors")


def assert_same_reference(stage: TinyStage, result: ReferenceResult) -> None:
    """The values of both splits are those that one process computed."""
    for split in ("train", "held_out"):
        keys = PairDataset.open(stage.data.path, split).row_keys
        ours, theirs = (
            read_aligned(Path(run.reference.path), split, keys) for run in (result, stage.reference)
        )
        np.testing.assert_allclose(ours.sums, theirs.sums, rtol=1e-5)
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize(("name", "processes"), [("plain", 2), ("zero3", 4), ("fsdp2", 4)])
def test_reference_values_and_evaluation_are_those_of_one_process(stage, tmp_path, name, processes):
    """Where the whole model fits a card, weights are not shared out for answers, and ranks wait for nobody; where it fits a
    machine, no weight crosses the network in the reference pass."""
    sharding = SHARDINGS[name]
    job = reference_job(
        tmp_path / "reference", stage.data, stage.checkpoint, rows_per_shard=8, sharding=sharding
    )
    result = run_ranks(job, processes, module="tests.programs.roomy_cards")
    assert (result.rows, result.rows_computed) == (40, 40)
    if name == "fsdp2":
        told = json.loads((job.out_dir / "answered-0.json").read_text())
        assert told["shards"] == 2, "each of two machines has a copy"
    assert_same_reference(stage, result)
    other = checkpoint_ref(make_model(tmp_path / "other", seed=1))
    job = stage.evaluate_job(tmp_path / "evaluation", other, num_prompts=5, max_new_tokens=8, measure_kl=True)
    alone = run_here(job.at(tmp_path / "alone"))
    job = job.model_copy(update={"sharding": sharding})
    shared = run_ranks(job, processes, module="tests.programs.roomy_cards")
    assert_same_evaluation(shared, alone)
    assert len(shared.answers) == 5
    assert shared.after["kl/per_token"] > 0.1
    of_ranks = [json.loads((job.out_dir / f"answered-{rank}.json").read_text()) for rank in range(processes)]
    prompts = {2: [3, 2], 4: [2, 1, 1, 1]}[processes]
    assert [of_rank["prompts"] for of_rank in of_ranks] == [2 * number for number in prompts], "before, after"
    assert [of_rank["exchanges"] for of_rank in of_ranks] == [0] * processes


def assert_same_evaluation(ours: EvaluateResult, theirs: EvaluateResult) -> None:
    """Answers and metrics within float noise."""
    assert ours.answers == theirs.answers
    assert ours.before == pytest.approx(theirs.before, rel=1e-5, abs=1e-6)
    assert ours.after == pytest.approx(theirs.after, rel=1e-5, abs=1e-6)


def test_ranks_that_see_other_shards_compute_the_same_rows_together(stage, tmp_path):
    """As on a network file system, while another run fills the cache: rank 1 sees nothing of it, and rank 0 nothing of what
    rank 1 writes."""
    assert_other_shards_do_no_harm(stage, tmp_path)


def assert_other_shards_do_no_harm(stage: TinyStage, folder: Path, **fields: object) -> None:
    """``fields``: of the pass on two processes; the cache's first rows come from one with transformers."""
    some = mix(make_rows(12), stage.checkpoint, folder / "some", held_out="0")
    before = reference_job(folder / "before", some, stage.checkpoint, cache_dir=folder / "cache")
    assert run_here(before).rows_computed == 12
    job = reference_job(
        folder / "run",
        stage.data,
        stage.checkpoint,
        cache_dir=folder / "cache",
        rows_per_shard=4,
        sharding=BACK_ENDS["fsdp2"],
        **fields,
    )
    result = run_ranks(job, module="tests.programs.late_folders")
    assert (result.rows, result.rows_computed) == (40, 28)
    assert_same_reference(stage, result)


def test_two_runs_fill_one_cache_at_the_same_time(stage, tmp_path):
    """Two ranks over all rows, and one process over some of the same rows that begins once those have written a shard: each
    has the values of one process, whoever computed them."""
    shared = {"cache_dir": tmp_path / "cache", "rows_per_shard": 2}
    job = reference_job(tmp_path / "all", stage.data, stage.checkpoint, sharding=BACK_ENDS["fsdp2"], **shared)
    some = mix(make_rows(12), stage.checkpoint, tmp_path / "some", held_out="0")
    other = reference_job(tmp_path / "other", some, stage.checkpoint, **shared)
    leader = start_ranks(job, 2, "tests.programs.late_folders")
    wait_until(lambda: list((tmp_path / "cache").rglob("shard-*.npz")) or leader.poll() is not None)
    assert leader.poll() is None, "it was over before the other began"
    result = run_here(other)
    assert leader.wait(PATIENCE_SECONDS) == 0
    assert_same_reference(stage, read_result(job))
    keys = PairDataset.open(some.path, "train").row_keys
    ours = read_aligned(Path(result.reference.path), "train", keys)
    known = {
        key: value
        for split in ("train", "held_out")
        for of_split in (PairDataset.open(stage.data.path, split).row_keys,)
        for key, value in zip(
            of_split, read_aligned(Path(stage.reference.reference.path), split, of_split).sums, strict=True
        )
    }
    np.testing.assert_allclose(ours.sums, [known[key] for key in keys], rtol=1e-5)


def test_a_layout_that_one_rank_cannot_compute_none_does(stage, tmp_path, monkeypatch):
    """It tries the next one, and the others have to: they have parts of its weights. The numbers are the same."""
    monkeypatch.setenv("REFUSES", "packed")
    assert_all_take_the_next_layout(stage, tmp_path)


def assert_all_take_the_next_layout(stage: TinyStage, folder: Path, **fields: object) -> None:
    """``fields``: of the reference pass on two processes, of which one refuses packed rows."""
    job = reference_job(folder, stage.data, stage.checkpoint, sharding=BACK_ENDS["fsdp2"], **fields)
    result = run_ranks(job, module="tests.programs.differing_ranks")
    assert result.forward == "prefix_sharing"
    assert_same_reference(stage, result)


@pytest.mark.parametrize("name", SPLITTING)
def test_rank_0_says_where_answers_end(stage, tmp_path, name):
    """A rank that stopped by a choice of its own would leave the others waiting for its part of the weights."""
    assert_evaluated_as_by_one(stage, tmp_path, "tests.programs.stopping_ranks", sharding=BACK_ENDS[name])


def assert_evaluated_as_by_one(stage: TinyStage, folder: Path, module: str, **fields: object) -> None:
    """An evaluation on two processes that run ``module`` gives what one process gives; ``fields``: of its job."""
    other = checkpoint_ref(make_model(folder / "other", seed=1))
    job = stage.evaluate_job(folder / "alone", other, num_prompts=5, max_new_tokens=8, measure_kl=True)
    alone = run_here(job)
    job = job.model_copy(update=fields).at(folder / "shared")
    assert_same_evaluation(run_ranks(job, module=module), alone)
