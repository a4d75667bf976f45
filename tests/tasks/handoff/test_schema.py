"""The hand-off file: round trip, and every way of being wrong refused by name."""

import json
import shlex
from pathlib import Path

import pytest

from dpo_core.contract.errors import HandoffRefused
from dpo_core.contract.keep_best import BestStep
from dpo_core.contract.store import write_json
from flows.rlvr_intake import local_path
from tasks.handoff.config import HandoffConfig
from tasks.handoff.grpo_command import grpo_command
from tasks.handoff.schema import Parent, Probe, RLVRHandoff, Tokens, read_handoff
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tests.tasks.made_scores import benchmarks

FLAGS = Path(__file__).with_name("grpo_flags.txt")
HUB = UploadedCheckpoint(
    kind="hub", uri=f"hf://org/dpo@{'a' * 40}", revision="a" * 40, repo_id="org/dpo", files={"x": "y"}
)


def make_handoff(**fields: object) -> RLVRHandoff:
    tokens = Tokens(
        tokenizer_fingerprint="t",
        chat_template_sha256="c",
        pad_token="<pad>",
        pad_token_id=1,
        eos_token_ids=(2,),
        tokenizer_size=8,
        vocab_size=8,
        num_parameters=1000,
    )
    parent = Parent(source="org/sft", revision="b" * 40, fingerprint="f", tokenizer_fingerprint="t")
    return RLVRHandoff(
        **{
            "name": "tiny",
            "checkpoint": HUB,
            "weights_fingerprint": "w",
            "tokens": tokens,
            "rules": (),
            "parent": parent,
            "data_fingerprint": "d",
            "reference_fingerprint": None,
            "metrics_before": {"loss": 0.7},
            "metrics_after": {"loss": float("nan")},
            "probe": Probe(prompt="p", answer="\x08 naïve \U0001f642"),
            "grpo_command": "python",
            "inputs_fingerprint": "i",
        }
        | fields
    ).sealed()


def test_it_reads_back_what_was_written(tmp_path: Path) -> None:
    handoff = make_handoff()
    write_json(tmp_path / "handoff.json", handoff)
    again = read_handoff(tmp_path / "handoff.json")
    assert again.model_dump_json() == handoff.model_dump_json()
    assert again.metrics_after["loss"] != again.metrics_after["loss"]  # not a number, and still there


def test_the_best_step_is_handed_on_and_without_one_the_file_is_that_of_before(tmp_path: Path) -> None:
    best = BestStep(
        metric="loss",
        mode="min",
        step=4,
        value=0.5,
        last_step=6,
        last_value=0.6,
        planned_steps=6,
        num_evaluations=3,
    )
    write_json(tmp_path / "handoff.json", make_handoff(best=best))
    assert read_handoff(tmp_path / "handoff.json").best == best
    assert "best" not in make_handoff().model_dump()
    assert "signature" not in make_handoff().model_dump()


def edited(path: Path, **fields: object) -> Path:
    write_json(path, json.loads(make_handoff(metrics_after={}).model_dump_json()) | fields)
    return path


HALF_A_CHARACTER = "/a\ud800"


@pytest.mark.parametrize(
    "fields",
    [
        {"name": HALF_A_CHARACTER},
        {"metrics_before": {HALF_A_CHARACTER: 0.5}},
        {"checkpoint": {**HUB.model_dump(mode="json"), "directory": HALF_A_CHARACTER}},
        {"probe": {"prompt": HALF_A_CHARACTER, "answer": ""}},
    ],
)
def test_half_a_character_is_refused(tmp_path: Path, fields: dict) -> None:
    with pytest.raises(HandoffRefused):
        read_handoff(edited(tmp_path / "handoff.json", **fields))


@pytest.mark.parametrize(
    "address",
    [
        "http://[x",
        "file://[x",
        "~nobody-has-this-name/handoff.json",
        "hf://org/dpo",
        "file://elsewhere.example/etc/passwd",
    ],
)
def test_what_is_no_path_is_refused_as_one(address: str) -> None:
    with pytest.raises(HandoffRefused, match="a hand-off is read from a path"):
        local_path(address)


def test_a_path_may_be_given_as_an_address() -> None:
    assert (
        local_path("file:///a%20b/handoff.json")
        == local_path("file://localhost/a%20b/handoff.json")
        == Path("/a b/handoff.json")
    )
    assert local_path("a b/handoff.json") == Path("a b/handoff.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema_version": 1}, "schema_version 1, expected 2"),
        ({"schema_version": None}, "schema_version None, expected 2"),
        ({"data_fingerprint": "other"}, "was changed after it was written"),
        ({"parent": 3}, "does not follow the schema: parent"),
        ({"surprise": 3}, "does not follow the schema: surprise"),
    ],
)
def test_an_edited_one_is_refused(tmp_path: Path, fields: dict, message: str) -> None:
    with pytest.raises(HandoffRefused, match=message):
        read_handoff(edited(tmp_path / "handoff.json", **fields))


@pytest.mark.parametrize(
    ("text", "message"), [('{"schema_version": 2', "is not JSON"), ("[1]", "schema_version None")]
)
def test_a_cut_or_foreign_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "handoff.json").write_text(text)
    with pytest.raises(HandoffRefused, match=message):
        read_handoff(tmp_path / "handoff.json")
    with pytest.raises(HandoffRefused, match="cannot be read"):
        read_handoff(tmp_path / "none.json")


def test_a_file_without_end_or_bottom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text('{"schema_version": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(HandoffRefused, match="is not JSON"):
        read_handoff(tmp_path / "deep.json")
    with pytest.raises(HandoffRefused, match="no regular file"):
        read_handoff(Path("/dev/zero"))
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(HandoffRefused, match="larger than 16 MiB"):
        read_handoff(tmp_path / "large.json")


def test_the_grpo_command_quotes_all_that_comes_from_elsewhere() -> None:
    there = HUB.model_copy(update={"revision": "$(id); a", "repo_id": "`id`/x", "endpoint": "http://h/;id"})
    command = grpo_command(there, HandoffConfig(grpo_dataset="'$(id)' 1.0"), "a; id")
    words = shlex.split(command.replace("\\\n", " "))
    assert {"$(id); a", "`id`/x", "HF_ENDPOINT=http://h/;id", "$(id)", "a; id-grpo"} <= set(words)


def test_open_instruct_knows_every_flag_of_the_grpo_command() -> None:
    known = {line for line in FLAGS.read_text().splitlines() if not line.startswith("#")}
    words = shlex.split(grpo_command(HUB, HandoffConfig(), "tiny").replace("\\\n", " "))
    flags = [word.removeprefix("--") for word in words if word.startswith("--")]
    assert len(flags) == len(set(flags)) > 25
    assert not set(flags) - known
    assert words[words.index("--push_to_hub") + 1] == "false"  # open-instruct publishes by default


def test_the_grpo_command_names_the_commit_or_the_path() -> None:
    command = grpo_command(HUB, HandoffConfig(), "tiny")
    assert command.startswith("python open_instruct/grpo_fast.py \\\n")
    for option in (
        "--model_name_or_path org/dpo",
        f"--model_revision {'a' * 40}",
        "--beta 0.01",
        "--learning_rate 5e-07",
        "--dataset_mixer_list allenai/RLVR-GSM-MATH-IF-Mixed-Constraints 1.0",
        "--dataset_mixer_eval_list allenai/RLVR-GSM-MATH-IF-Mixed-Constraints 16",
    ):
        assert f"    {option}" in command
    assert "chat_template_name" not in command  # else GRPO would replace the template that DPO trained with
    local = UploadedCheckpoint(
        kind="directory", uri="file:///a%20b", revision="r", directory=Path("/a b"), files={}
    )
    assert "--model_name_or_path '/a b'" in grpo_command(local, HandoffConfig(), "tiny")
    assert "--model_revision" not in grpo_command(local, HandoffConfig(), "tiny")


def test_benchmarks_are_handed_on_and_without_them_the_file_is_that_of_before(tmp_path: Path) -> None:
    scores = benchmarks(gsm8k=(60, 40))
    write_json(tmp_path / "handoff.json", make_handoff(benchmarks=scores))
    assert read_handoff(tmp_path / "handoff.json").benchmarks == scores
    assert "benchmarks" not in make_handoff().model_dump()
