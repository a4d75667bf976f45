"""Another tokenizer by name takes the place of the checkpoint's own, and everything that reads ids agrees with it."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError, ConfigError
from dpo_core.contract.jobs import RehearseJob
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import CheckpointRef
from dpo_core.data.tokenizer import load_tokenizer
from dpo_core.steps import rehearse
from tasks.checkpoint.other_tokenizer import with_tokenizer
from tasks.checkpoint.source import locate, snapshot
from tasks.checkpoint.token_ids import TokenIds, agreeing
from tests.hub_server import Hub
from tests.tiny_models import CHATML, make_tokenizer

TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the sea"}]


def fetch(source: object, store: Path, **fields: object) -> CheckpointRef:
    config = CheckpointConfig(source=str(source), **{name: str(value) for name, value in fields.items()})
    return snapshot(with_tokenizer(locate(config, store), config, store), config, store)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The same words, another template and another end of text."""
    tokenizer = make_tokenizer(CHATML.replace("<|im_end|>", "<|endoftext|>"), "<|im_start|>", "<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "README.md").write_text("not the tokenizer's")
    return tmp_path / "other"


def test_its_files_and_special_tokens_take_the_place_of_the_checkpoints(
    checkpoint: Path, other: Path, tmp_path: Path
) -> None:
    (checkpoint / "added_tokens.json").write_text("{}")
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "rag.jinja").write_text(CHATML)
    plain, found = (
        fetch(checkpoint, tmp_path / "store"),
        fetch(checkpoint, tmp_path / "store", tokenizer=other),
    )
    named = load_tokenizer(other)
    ours = load_tokenizer(found.path)
    assert ours.apply_chat_template(TURNS) == named.apply_chat_template(TURNS)
    assert set(found.files) == set(plain.files) - {"added_tokens.json", "additional_chat_templates/rag.jinja"}
    assert found.files["model.safetensors"] == plain.files["model.safetensors"]
    assert (found.tokenizer_fingerprint, found.tokenizer_source) == (
        fetch(other_as_checkpoint(checkpoint, other, tmp_path), tmp_path / "store").tokenizer_fingerprint,
        str(other),
    )
    for file in ("config.json", "generation_config.json"):
        ids = json.loads((found.path / file).read_bytes())
        # what ended an answer before does so still: it is the same token
        assert ids["eos_token_id"] == sorted(named.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
        assert ids["pad_token_id"] == named.pad_token_id


def other_as_checkpoint(checkpoint: Path, other: Path, tmp_path: Path) -> Path:
    both = tmp_path / "both"
    both.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, both)
    for path in other.glob("*[!d]"):
        shutil.copy(path, both)
    return both


def test_the_checkpoints_own_tokenizer_by_name_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    plain = fetch(checkpoint, tmp_path / "store")
    assert fetch(checkpoint, tmp_path / "store", tokenizer=checkpoint).path == plain.path


def test_what_an_export_writes_is_the_named_tokenizer(checkpoint: Path, other: Path, tmp_path: Path) -> None:
    for path in (checkpoint / "tokenizer.json", checkpoint / "chat_template.jinja"):
        path.unlink()  # a base model without one
    found = fetch(checkpoint, tmp_path / "store", tokenizer=other)
    result = rehearse.run(RehearseJob(checkpoint=found).at(tmp_path / "out"), Progress("rehearse"))
    named = load_tokenizer(other)
    expected = named.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    assert list(result.loaded.prompts_ids[0]) == expected["input_ids"]
    assert named.eos_token_id in result.loaded.eos_token_ids


def test_a_tokenizer_of_the_hub_is_pinned_by_its_commit(
    checkpoint: Path, other: Path, tmp_path: Path, hub: Hub
) -> None:
    files = {path.name: path.read_bytes() for path in other.iterdir()}
    commit = hub.add_repo("org/tokenizer", files | {"model.safetensors": b"?"})
    found = fetch(checkpoint, tmp_path / "store", tokenizer="org/tokenizer", tokenizer_revision="main")
    assert found.tokenizer_revision == commit
    assert found.path == fetch(checkpoint, tmp_path / "store", tokenizer=other).path
    assert not any(name in request for request in hub.requests for name in ("model.safetensors", "README.md"))
    with pytest.raises(ConfigError, match="fetching the tokenizer org/none"):
        fetch(checkpoint, tmp_path / "store", tokenizer="org/none")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda other: (other / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda other: (other / "chat_template.jinja").unlink(), "has no chat template"),
        (
            lambda other: _set(other, auto_map={"AutoTokenizer": ["x.Y", None]}),
            "wants to run its own Python code",
        ),
        (lambda other: (other / "tokenizer.json").write_text('{"model": {}}'), "holds no vocabulary"),
        (lambda other: _grow(other), r"vocabulary of 1000 tokens.*has \d+ rows"),
        (shutil.rmtree, "checkpoint.tokenizer .* does not exist as a directory"),
    ],
)
def test_what_cannot_be_used_is_refused_before_training(
    checkpoint: Path, other: Path, tmp_path: Path, spoil: object, message: str
) -> None:
    spoil(other)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        fetch(checkpoint, tmp_path / "store", tokenizer=other)


def _set(folder: Path, **settings: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | settings))


def _grow(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_bytes())
    content["model"]["vocab"]["qqqq"] = 999
    path.write_text(json.dumps(content))


def test_a_tokenizer_without_a_class_is_what_its_file_says(
    checkpoint: Path, other: Path, tmp_path: Path
) -> None:
    """Without one the class of the model's kind would be taken: a Llama tokenizer splits words in another way."""
    settings = json.loads((other / "tokenizer_config.json").read_bytes())
    expected = load_tokenizer(other).apply_chat_template(TURNS)
    (other / "tokenizer_config.json").write_text(
        json.dumps({name: settings[name] for name in ("eos_token", "pad_token")})
    )
    found = fetch(checkpoint, tmp_path / "store", tokenizer=other)
    assert load_tokenizer(found.path).apply_chat_template(TURNS) == expected


def test_a_vocabulary_of_another_order_is_said(
    checkpoint: Path, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((other / "tokenizer.json").read_bytes())
    vocabulary = content["model"]["vocab"]
    numbers = sorted(vocabulary.values())
    content["model"]["vocab"] = dict(zip(reversed(list(vocabulary)), numbers, strict=True))
    (other / "tokenizer.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        fetch(checkpoint, tmp_path / "store", tokenizer=other)
    assert "what it reads is noise" in caplog.text


OLD = TokenIds({"<s>": 1, "a": 5}, {"</s>": 2, "<|im_end|>": 7}, {})


@pytest.mark.parametrize(
    ("config", "own", "expected"),
    [
        ({"eos_token_id": 2}, OLD, [3, 9]),  # </s> is 3 there, and <eos> ends as well
        ({"eos_token_id": [2, 7]}, OLD, [3, 9]),  # <|im_end|> is no token any more
        ({"eos_token_id": 7}, OLD, 9),
        ({"eos_token_id": 2}, None, 9),  # nobody knows what 2 was, and no added token has it now
        ({"eos_token_id": 3}, None, [3, 9]),
        ({}, OLD, 9),
        ({"text_config": {"eos_token_id": 7}}, OLD, 9),
    ],
)
def test_ends_are_those_of_the_named_tokenizer(config: dict, own: TokenIds | None, expected: object) -> None:
    ids = TokenIds({"a": 0, "<s>": 2}, {"</s>": 3, "<eos>": 9}, {"eos_token": 9, "bos_token": 2})
    changed = agreeing(config, ids, own)
    found = changed.get("text_config", changed)
    assert found["eos_token_id"] == expected
    assert found["bos_token_id"] == 2
    assert found.get("pad_token_id") is None


def test_a_revision_without_a_tokenizer_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="tokenizer_revision is set without"):
        CheckpointConfig(source="org/sft", tokenizer_revision="main")
