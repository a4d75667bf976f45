"""Settings for generating that the library refuses to read: what contradicts itself goes, the rest stays."""

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig

from dpo_core.contract.errors import CheckpointError
from dpo_core.model.generation_settings import read_settings, why_unwritable, writable
from dpo_core.model.sound_settings import sound_settings


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


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": "0.7", "top_k": "20"}, {"temperature": 0.7, "top_k": 20}),
        ({"temperature": -1, "top_p": 0, "min_p": 2, "repetition_penalty": 0, "max_time": "x"}, {}),
        ({"temperature": NAN, "top_p": INFINITE, "typical_p": True, "length_penalty": [1]}, {}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": -2, "max_length": 1e30, "num_beams": 0, "min_length": 2.5, "max_new_tokens": -5}, {}),
        ({"max_length": 4096.0, "num_beams": "2"}, {"max_length": 4096, "num_beams": 2}),
        ({"do_sample": "false", "use_cache": 1}, {"do_sample": False, "use_cache": True}),
        ({"do_sample": "yes", "use_cache": 2}, {}),
        ({"temperature": 0.0, "do_sample": True, "top_p": 0.9, "max_length": 9}, {"max_length": 9}),
        ({"eos_token_id": [2, 400, 399], "bos_token_id": 400}, {"eos_token_id": [2, 399]}),
        ({"bos_token_id": "x", "suppress_tokens": [-1], "pad_token_id": True}, {}),
        ({"stop_strings": [""], "exponential_decay_length_penalty": 3}, {}),
    ],
    ids=str,
)
def test_values_that_nobody_can_generate_with_are_put_right_or_left_out(settings: dict, kept: dict):
    """The bounds are those of vLLM's SamplingParams, and of what ``generate`` makes of the same settings."""
    made, said = sound_settings(settings, num_tokens=400)
    assert made == kept
    assert [type(value) for value in made.values()] == [type(value) for value in kept.values()]
    assert all(any(name in one for one in said) for name in settings if made.get(name) != settings[name]) or (
        "temperature 0 is greedy, and nothing is drawn" in said
    )
    assert sound_settings(made, num_tokens=400) == (made, [])


SOUND = {"do_sample": True, "temperature": 0.6, "top_p": 1, "top_k": 0, "eos_token_id": [2, 399], "max_length": 8192,
         "repetition_penalty": 1.05, "stop_strings": "x", "own": {"a": 1}, "exponential_decay_length_penalty": [9, 1.1],
         "min_p": None, "cache_implementation": "static", "suppress_tokens": [5]}  # fmt: skip


def test_settings_that_can_be_generated_with_stay_to_the_letter(tmp_path: Path):
    assert sound_settings(SOUND, num_tokens=400) == (SOUND, [])
    (tmp_path / "generation_config.json").write_text(json.dumps(SOUND))
    read = read_settings(tmp_path)
    assert writable(read, 400) is read


def test_an_odd_value_goes_and_the_rest_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    settings = {"temperature": 0.6, "top_p": 1.5, "eos_token_id": [2, 99_999], "num_beams": "1"}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    made = writable(read_settings(tmp_path), 400)
    assert (made.do_sample, made.temperature, made.top_p, made.eos_token_id) == (True, 0.6, None, [2])
    assert why_unwritable(made) is None
    assert "top_p 1.5 is left out" in caplog.text
    assert "num_beams '1' becomes 1" in caplog.text


def test_what_can_be_read_is_read_as_it_is(tmp_path: Path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.9}))
    assert read_settings(tmp_path).temperature == 0.9
