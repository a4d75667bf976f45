"""The reference pass: killed and resumed, shared by mixtures, sound after damage; and its values."""

import numpy as np
import pytest
import torch

from dpo_core.contract.errors import CheckpointError, NonFinite, StoreError
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import ReferenceCache, ReferenceRows, read_aligned, write_shard
from dpo_core.model.load import load_model
from dpo_core.steps.reference import model_cache_folder
from tests.dpo_core.model.test_forward import by_hand
from tests.dpo_core.steps.test_rehearse import with_json, with_weights
from tests.programs.held_files import HELD_AT
from tests.step_process import kill_when, start
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref, make_rows, mix, reference_job, run_here


def aligned_bytes(result) -> dict[str, bytes]:
    return {split: (result.reference.path / f"{split}.npz").read_bytes() for split in ("train", "held_out")}


def shards(job) -> list:
    return sorted(model_cache_folder(job).glob("shard-*.npz"))


def test_values_are_those_computed_by_hand(stage):
    model = load_model(stage.checkpoint)
    for split, count in (("train", 34), ("held_out", 6)):
        dataset = PairDataset.open(stage.data.path, split)
        reference = read_aligned(stage.reference.reference.path, split, dataset.row_keys)
        assert reference.sums.shape == reference.tokens.shape == (count, 2)
        for row in range(0, count, 5):
            pair = dataset[row]
            expected = [
                by_hand(model, pair.chosen_ids, pair.chosen_trained),
                by_hand(model, pair.rejected_ids, pair.rejected_trained),
            ]
            np.testing.assert_allclose(reference.sums[row], expected, rtol=1e-5)
            assert reference.tokens[row].tolist() == [pair.chosen_trained.sum(), pair.rejected_trained.sum()]


@pytest.mark.integration
def test_a_killed_pass_goes_on_where_it_stopped_and_gives_the_same_bits(stage, tmp_path, monkeypatch):
    monkeypatch.setenv(HELD_AT, "/shard-:50")
    data = mix(make_rows(300), stage.checkpoint, tmp_path / "data", held_out="40")
    job = reference_job(
        tmp_path / "killed" / "run", data, stage.checkpoint, rows_per_shard=2, tokens_per_batch=64
    )
    kill_when(start(job, module="tests.programs.held_files"), lambda: len(shards(job)) >= 4)
    survived = {path: path.stat().st_mtime_ns for path in shards(job)}
    rows_survived = sum(len(np.load(path)["row_keys"]) for path in survived)
    assert 0 < rows_survived < 300
    assert not (job.out_dir / "reference").exists()
    after_kill = run_here(job)
    resumed = run_here(job.at(tmp_path / "killed" / "again"))
    whole = run_here(job.model_copy(update={"cache_dir": tmp_path / "fresh"}).at(tmp_path / "whole"))
    assert (whole.rows_computed, resumed.rows_computed) == (300, 0)
    assert after_kill.rows_computed == 300 - rows_survived
    assert {path: path.stat().st_mtime_ns for path in survived} == survived
    assert aligned_bytes(after_kill) == aligned_bytes(resumed) == aligned_bytes(whole)


def test_a_changed_mixture_computes_only_its_new_rows(stage, tmp_path):
    first = mix(make_rows(30), stage.checkpoint, tmp_path / "first", held_out="3")
    second = mix(
        make_rows(20) + make_rows(8, seed=99), stage.checkpoint, tmp_path / "second", held_out="5", seed=1
    )
    one = run_here(reference_job(tmp_path / "one", first, stage.checkpoint))
    two = run_here(reference_job(tmp_path / "two", second, stage.checkpoint))
    assert (one.rows, one.rows_computed) == (30, 30)
    assert (two.rows, two.rows_computed) == (28, 8)
    alone = run_here(
        reference_job(tmp_path / "alone", second, stage.checkpoint, cache_dir=tmp_path / "alone-cache")
    )
    for split in ("train", "held_out"):
        keys = PairDataset.open(second.path, split).row_keys
        shared, fresh = (read_aligned(result.reference.path, split, keys) for result in (two, alone))
        np.testing.assert_allclose(
            shared.sums, fresh.sums, rtol=1e-5
        )  # batched with other rows: the last bits may differ
        np.testing.assert_array_equal(shared.tokens, fresh.tokens)


def test_a_row_that_stands_several_times_is_computed_once(stage, tmp_path):
    rows = make_rows(10)
    data = mix(rows + rows[:4] + rows[:4], stage.checkpoint, tmp_path / "data", held_out="0")
    result = run_here(reference_job(tmp_path / "run", data, stage.checkpoint))
    assert (result.rows, result.rows_computed) == (18, 10)
    keys = PairDataset.open(data.path, "train").row_keys
    sums = read_aligned(result.reference.path, "train", keys).sums
    by_key = {key: sums[row] for row, key in enumerate(keys)}
    assert len(by_key) == 10
    assert all((sums[row] == by_key[key]).all() for row, key in enumerate(keys))


def test_a_damaged_shard_is_reported_and_its_rows_are_computed_again(stage, tmp_path, caplog):
    job = reference_job(tmp_path / "run", stage.data, stage.checkpoint, rows_per_shard=8)
    expected = aligned_bytes(run_here(job))
    victim = shards(job)[1]
    rows_lost = len(np.load(victim)["row_keys"])
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    again = run_here(job.at(tmp_path / "again"))
    assert f"{victim} is damaged" in caplog.text
    assert again.rows_computed == rows_lost
    assert aligned_bytes(again) == expected


def test_each_checkpoint_and_precision_has_its_own_cache(stage, tmp_path):
    other = checkpoint_ref(make_model(tmp_path / "other", seed=1))
    jobs = [
        reference_job(tmp_path / name, stage.data, checkpoint, precision=precision)
        for name, checkpoint, precision in (
            ("a", stage.checkpoint, "fp32"),
            ("b", other, "fp32"),
            ("c", stage.checkpoint, "bf16"),
        )
    ]
    results = [run_here(job) for job in jobs]
    assert [result.rows_computed for result in results] == [40, 40, 40]
    assert len({model_cache_folder(job) for job in jobs}) == 3
    keys = PairDataset.open(stage.data.path, "train").row_keys
    fp32, of_other, bf16 = (read_aligned(result.reference.path, "train", keys) for result in results)
    assert np.abs(fp32.sums - of_other.sums).max() > 1
    difference_per_token = np.abs(fp32.sums - bf16.sums) / fp32.tokens
    assert 0 < difference_per_token.max() < 0.05


def test_values_of_other_rows_are_refused(stage):
    keys = PairDataset.open(stage.data.path, "train").row_keys
    folder = stage.reference.reference.path
    for wrong in (keys[::-1], keys[:-1], [*keys[:-1], b"0" * 32]):
        with pytest.raises(StoreError, match="is of another mixture"):
            read_aligned(folder, "train", wrong)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "text"])
def test_damaged_values_are_refused(stage, tmp_path, damage):
    keys = PairDataset.open(stage.data.path, "train").row_keys
    content = bytearray((stage.reference.reference.path / "train.npz").read_bytes())
    file = tmp_path / "reference" / "train.npz"
    file.parent.mkdir()
    flipped = bytearray(content)
    flipped[content.index(read_aligned(stage.reference.reference.path, "train", keys).sums.tobytes())] ^= 1
    kinds = {"empty": b"", "cut": content[: len(content) // 2], "flipped": flipped, "text": b"no archive"}
    if damage != "missing":
        file.write_bytes(kinds[damage])
    with pytest.raises(StoreError, match=r"train\.npz cannot be read"):
        read_aligned(file.parent, "train", keys)


def test_a_model_with_infinite_weights_is_refused_with_the_rows(stage, tmp_path):
    model = load_model(stage.checkpoint)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    folder = make_model(tmp_path / "broken")
    model.save_pretrained(folder)
    with pytest.raises(NonFinite, match=r"no finite log-probability for rows \[\d+"):
        run_here(reference_job(tmp_path / "run", stage.data, checkpoint_ref(folder)))


def test_the_cache_finds_rows_whatever_shard_they_are_in(tmp_path):
    numbers = np.arange(12, dtype=np.float32).reshape(6, 2)
    values = ReferenceRows(numbers, numbers.astype(np.int32) + 1, numbers / 2)
    part = [values[:3], values[3:]]
    write_shard(tmp_path, ["a", "b", "c"], part[0])
    write_shard(tmp_path, ["d", "e", "f"], part[1])
    write_shard(tmp_path, ["c", "d"], values[2:4])  # of a killed pass: rows again
    cache = ReferenceCache(tmp_path)
    assert cache.is_missing(["a", "x", "f", "y"]).tolist() == [False, True, False, True]
    found = cache.look_up(["f", "a", "c", "a"])
    np.testing.assert_array_equal(found.sums, values.sums[[5, 0, 2, 0]])
    np.testing.assert_array_equal(found.tokens, values.tokens[[5, 0, 2, 0]])
    np.testing.assert_array_equal(found.tails, values.tails[[5, 0, 2, 0]])
    with pytest.raises(StoreError, match="lacks 1 reference rows"):
        cache.look_up(["a", "x"])
    assert cache.look_up([]).sums.shape == (0, 2)


def test_a_reference_that_lacks_the_rows_tokens_is_refused(stage, tmp_path):
    folder = make_model(tmp_path / "sft")
    model = load_model(checkpoint_ref(folder))
    model.resize_token_embeddings(40)
    model.save_pretrained(folder)
    job = reference_job(tmp_path / "run", stage.data, checkpoint_ref(folder))
    with pytest.raises(
        CheckpointError, match=r"token \d+, and the embedding of .* has 40 rows.*reference\.source"
    ):
        run_here(job)


@pytest.mark.parametrize(
    ("settings", "spoil", "sentence"),
    [
        ({"num_hidden_layers": 1}, None, r"left out.*layers\.1"),
        ({"architectures": ["LlamaForSequenceClassification"]}, None, "no language model"),
        (
            {},
            lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] * 2},
            "are one matrix",
        ),
    ],
    ids=["a layer more", "a reward model", "two heads"],
)
def test_a_reference_by_itself_is_looked_at_as_the_policy_is(stage, tmp_path, settings, spoil, sentence):
    other = make_model(tmp_path / "other", seed=7)
    with_json("config.json", **settings)(other)
    if spoil:
        with_weights(spoil)(other)
    job = reference_job(tmp_path / "run", stage.data, checkpoint_ref(other))
    with pytest.raises(CheckpointError, match=sentence):
        run_here(job)
