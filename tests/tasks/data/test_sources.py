"""What a data source is taken for, and what pins its content."""

import pytest

from dpo_core.contract.errors import ConfigError, DataError, RemoteError
from dpo_core.contract.quality_config import EvaluationSet
from dpo_core.contract.source_config import DataSource
from tasks.data.sources import check_sources, is_hub_id, resolve_evaluation_sets, resolve_source


def test_a_file_is_pinned_by_its_bytes_wherever_it_lies(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"x": 1}\n')
    first, second = (
        resolve_source(DataSource(source=str(tmp_path / name))) for name in ("a.jsonl", "b.jsonl")
    )
    assert first.content == second.content
    (tmp_path / "a.jsonl").write_text('{"x": 2}\n')
    assert resolve_source(DataSource(source=str(tmp_path / "a.jsonl"))).content != first.content


def test_a_directory_is_pinned_by_all_its_files(tmp_path):
    (tmp_path / "a.jsonl").write_text("1")
    first = resolve_source(DataSource(source=str(tmp_path))).content
    (tmp_path / "b.jsonl").write_text("2")
    assert resolve_source(DataSource(source=str(tmp_path))).content != first


def test_an_existing_path_wins_over_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").write_text("row")
    monkeypatch.chdir(tmp_path)
    found = resolve_source(DataSource(source="org/name"))
    assert (found.path, found.hub_id) == (tmp_path / "org" / "name", None)


@pytest.mark.parametrize(
    "source", ["missing.jsonl", "data/missing.jsonl", "./org/name", "/no/where", "~/x", "a/b/c"]
)
def test_what_looks_like_a_path_is_never_looked_up_on_the_hub(source):
    with pytest.raises(DataError, match="does not exist"):
        resolve_source(DataSource(source=source))


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        resolve_source(DataSource(source=str(tmp_path)))


def test_a_commit_needs_no_network_and_is_recorded():
    commit = "0123456789abcdef0123456789abcdef01234567"
    found = resolve_source(
        DataSource(source="org/name", revision=commit, amount=100, split="test", subset="en")
    )
    assert (found.hub_id, found.commit, found.content) == ("org/name", commit, f"org/name@{commit}")
    assert (found.amount, found.split, found.subset) == ("100", "test", "en")


def test_a_data_set_that_the_hub_does_not_have(hub):
    with pytest.raises(ConfigError, match="looking up the data set org/nothing@main"):
        resolve_source(DataSource(source="org/nothing", revision="main"))


def test_an_answer_without_a_commit_pins_nothing(hub):
    hub.add_repo("org/pairs", {"a.jsonl": b"{}\n"}, kind="dataset")
    hub.names_commits = False
    with pytest.raises(
        RemoteError, match="names no commit of org/pairs, met while looking up the data set org/pairs@main"
    ):
        resolve_source(DataSource(source="org/pairs", revision="main"))


def test_hub_ids():
    assert is_hub_id("allenai/llama-3.1-tulu-3-8b-preference-mixture")
    assert not is_hub_id("org/file.parquet")
    assert not is_hub_id("single-name")


def test_a_local_evaluation_set_is_read_whole_whatever_its_split(tmp_path):
    (tmp_path / "eval.jsonl").write_text('{"question": "Why?"}\n')
    (one,) = resolve_evaluation_sets(
        (EvaluationSet(source=str(tmp_path / "eval.jsonl"), fields=("question",)),)
    )
    assert (one.split, one.fields, one.path) == ("train", ("question",), tmp_path / "eval.jsonl")
    assert len(one.content) == 64


def test_an_evaluation_set_that_cannot_be_meant_is_refused_by_its_setting():
    with pytest.raises(DataError, match=r"quality\.evaluation_sets: eval\.jsonl does not exist"):
        check_sources((EvaluationSet(source="eval.jsonl"),), "quality.evaluation_sets")
