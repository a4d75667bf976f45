"""Tokens that were added to a tokenizer and not to its model: a row that writes one is dropped by name, no index error."""

from pathlib import Path

import pytest

from dpo_core.contract.data_jobs import MixJob
from dpo_core.contract.errors import CheckpointError, DataError
from dpo_core.contract.job import Result
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data.known_positions import check_positions
from dpo_core.data.known_tokens import rows_fewer_than_tokens
from tests.tiny_models import CHATML, make_model, make_tokenizer
from tests.tiny_stage import run_here

TOKEN = "<|turn|>"


def checkpoint(folder: Path, chat_template: str = CHATML) -> Path:
    """A model, and a tokenizer with a token more than it has rows."""
    make_model(folder)
    tokenizer = make_tokenizer(chat_template)
    tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
    tokenizer.save_pretrained(folder)
    return folder


def mixed(folder: Path, tokenizer: Path) -> Result:
    rows = [
        '{"prompt": "Where is the sea?", "chosen": "There.", "rejected": "No."}',
        f'{{"prompt": "Where is the {TOKEN}?", "chosen": "There.", "rejected": "No."}}',
    ]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    job = MixJob(
        sources=(ResolvedSource(label="rows", path=folder / "rows.jsonl", content="c"),),
        tokenizer_path=tokenizer,
        tokenizer_fingerprint="t",
        held_out="0",
        num_workers=1,
        cache_dir=folder / "cache",
    )
    return run_here(job.at(folder / "mix"))


def test_a_row_that_writes_such_a_token_is_dropped_by_name(tmp_path: Path):
    (ledger,) = mixed(tmp_path, checkpoint(tmp_path / "sft")).per_source
    assert (ledger.kept, dict(ledger.dropped)) == (1, {"token_without_row": 1})


def test_a_template_that_writes_it_leaves_no_row(tmp_path: Path):
    template = CHATML.replace("<|im_start|>", TOKEN)
    with pytest.raises(DataError, match=r"No row is left.*resize_token_embeddings"):
        mixed(tmp_path, checkpoint(tmp_path / "sft", template))


def test_a_tokenizer_that_its_model_covers_is_not_looked_at_further(tmp_path: Path):
    folder = make_model(tmp_path / "sft")
    assert rows_fewer_than_tokens(make_tokenizer(), folder) is None
    (folder / "config.json").unlink()
    assert rows_fewer_than_tokens(make_tokenizer(), folder) is None


def test_a_config_that_leaves_the_rows_to_its_architecture_is_understood(tmp_path: Path):
    """Gemma 3 with vision writes a text_config without vocab_size, which is 262,208 then."""
    tokenizer = make_tokenizer()
    (tmp_path / "config.json").write_text(
        '{"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}'
    )
    assert rows_fewer_than_tokens(tokenizer, tmp_path) is None
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer.get_vocab = lambda: {"a": 50_257}  # one more than GPT-2's
    assert rows_fewer_than_tokens(tokenizer, tmp_path) == 50_257


def test_a_sequence_longer_than_the_model_has_places_for_is_refused_with_the_setting(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_positions": 16}')
    check_positions(tmp_path, 16)
    with pytest.raises(CheckpointError, match=r"17 tokens.*16 places.*data\.max_length_tokens to 16"):
        check_positions(tmp_path, 17)
    for other in (
        '{"model_type": "llama", "max_position_embeddings": 16}',
        "[]",
        '{"model_type": "gpt2", "n_positions": "x"}',
    ):
        (tmp_path / "config.json").write_text(other)
        check_positions(tmp_path, 17)
