"""Each rule fails on the checkpoint that breaks it, and on no other."""

import json
from pathlib import Path

import pytest

from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.jobs import AnswerResult
from dpo_core.contract.store import hash_files
from tasks.checkpoint.own_files import read_text_file
from tasks.handoff.rlvr_rules import check_rules, check_template, template_text
from tasks.publish.directory import content_revision
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint

GOOD = AnswerResult(
    job_fingerprint="j",
    answers=("Paris.",),
    pad_token="<|endoftext|>",
    pad_token_id=0,
    eos_token_ids=(2,),
    vocab_size=351,
    tokenizer_size=351,
    num_parameters=1,
    prompts_ids=((1, 5, 2),),
)


def failing(folder: Path, answer: AnswerResult = GOOD, **uploaded: object) -> set[str]:
    files = hash_files(folder)
    place = UploadedCheckpoint(
        **{
            "kind": "directory",
            "uri": folder.as_uri(),
            "revision": content_revision(files),
            "files": files,
            "directory": folder,
        }
        | uploaded
    )
    return {check.rule for check in check_rules(folder, place, answer) if not check.passed}


def test_a_good_checkpoint_breaks_none(made_checkpoint: Path) -> None:
    assert failing(made_checkpoint) == set()


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (
            {"pad_token": None, "pad_token_id": None},
            {"pad_token_exists", "pad_differs_from_eos", "pad_ids_agree"},
        ),
        ({"eos_token_ids": (0, 2)}, {"pad_differs_from_eos"}),
        ({"prompts_ids": ((0, 1, 5, 2),)}, {"pad_is_no_template_token"}),
        ({"pad_token": "<|im_start|>", "pad_token_id": 1}, {"pad_is_no_template_token", "pad_ids_agree"}),
        ({"tokenizer_size": 352}, {"vocabulary_covers_tokenizer"}),
        ({"answers": ("",)}, {"answers_a_prompt"}),
    ],
)
def test_what_the_load_reported(made_checkpoint: Path, change: dict, broken: set[str]) -> None:
    assert failing(made_checkpoint, GOOD.model_copy(update=change)) == broken


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("generation_config.json", {"required_files"}),
        ("model.safetensors", {"required_files"}),
        ("tokenizer.json", {"required_files"}),
        ("chat_template.jinja", {"chat_template"}),
    ],
)
def test_a_missing_file(checkpoint: Path, name: str, broken: set[str]) -> None:
    (checkpoint / name).unlink()
    assert failing(checkpoint) == broken


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "cannot be read as text"),
        (b"{# long #}" * 500_000, "larger than 4 MiB"),
        (None, "no regular file"),
    ],
)
def test_a_template_that_is_no_text_is_refused(checkpoint: Path, content: bytes | None, message: str) -> None:
    path = checkpoint / "chat_template.jinja"
    path.unlink()
    path.write_bytes(content) if content is not None else path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=message):
        read_text_file(path)
    if content is not None:
        with pytest.raises(CheckpointError, match=message):
            check_template(checkpoint)


def test_line_breaks_of_a_template_are_read_as_a_loader_reads_them(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_bytes("a\r\nb\rü".encode())
    assert template_text(checkpoint) == "a\nb\nü"


def test_files_that_do_not_belong(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").write_bytes(b"")
    assert failing(checkpoint) == {"full_weights_only"}


def test_pad_ids_that_disagree(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text()) | {"pad_token_id": 2}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert failing(checkpoint) == {"pad_ids_agree"}


def test_a_branch_is_no_revision(made_checkpoint: Path) -> None:
    assert failing(made_checkpoint, kind="hub", repo_id="org/dpo", revision="main") == {
        "revision_is_immutable"
    }
    assert failing(made_checkpoint, kind="hub", repo_id="org/dpo", revision="a" * 40) == set()
    assert failing(made_checkpoint, revision="a" * 64) == {"revision_is_immutable"}
