"""Settings for generating that the library refuses to read: what contradicts itself goes, the rest stays."""

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig

from dpo_core.contract.errors import CheckpointError
from dpo_core.model.generation_settings import read_settings, why_unwritable


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        # several answers of a greedy model: it was meant to draw them
        ({"num_return_sequences": 4}, {"num_return_sequences": 4, "do_sample": True}),
        ({"num_return_sequences": 4, "do_sample": False}, {"num_return_sequences": 4, "do_sample": True}),
        ({"num_return_sequences": 4, "num_beams": 2}, {"num_beams": 2, "num_return_sequences": None}),
        ({"max_new_tokens": 0, "top_p": 0.6}, {"max_new_tokens": None, "top_p": 0.6, "do_sample": True}),
        ({"cache_implementation": "foo", "eos_token_id": [2, 7]}, {"eos_token_id": [2, 7]}),
        ({"watermarking_config": {"a": 1}, "top_k": 5}, {"top_k": 5, "do_sample": True}),
        ({"max_new_tokens": "many", "pad_token_id": 3}, {"pad_token_id": 3, "max_new_tokens": None}),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_made_fit(tmp_path: Path, settings: dict, kept: dict):
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises((ValueError, TypeError)):
        GenerationConfig.from_pretrained(tmp_path)
    made = read_settings(tmp_path)
    assert {name: getattr(made, name) for name in kept} == kept
    assert why_unwritable(made) is None


@pytest.mark.parametrize("text", [None, "", "{", "no JSON"])
def test_a_checkpoint_without_such_settings_has_none(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "generation_config.json").write_text(text)
    assert read_settings(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["[1, 2]", "3", "null", '{"a": %s}' % ("9" * 5000), '{"a": ' * 5000 + "1" + "}" * 5000], ids=len
)
def test_a_file_of_something_else_is_refused_by_its_name(tmp_path: Path, text: str):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json holds no settings .* take it away"):
        read_settings(tmp_path)


def test_what_can_be_read_is_read_as_it_is(tmp_path: Path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.9}))
    assert read_settings(tmp_path).temperature == 0.9
