"""A recipe's chat template from a file: its text is what jobs are told."""

import json

import pytest

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import ConfigError
from tasks.checkpoint.chosen_template import ChosenTemplate, chosen_template, with_template_read

TEXT = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("value", [None, "olmo2", TEXT])
def test_names_and_texts_stay_what_they_are(value):
    config = CheckpointConfig(source="a", chat_template=value, add_bos=True)
    assert chosen_template(config) == ChosenTemplate(value, add_bos=True)


@pytest.mark.parametrize("name", ["a.jinja", "sub folder/b.json", "ü.txt"])
def test_a_file_is_read_from_the_working_directory(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"chat_template": TEXT}) if name.endswith("json") else TEXT)
    assert chosen_template(CheckpointConfig(source="a", chat_template=name)).template == TEXT
    assert chosen_template(CheckpointConfig(source="a", chat_template=str(path))).template == TEXT


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jinja", None, "is no file"),
        ("a.jinja", b"tulu", "holds no chat template"),
        ("a.jinja", b"", "holds no chat template"),
        ("a.jinja", b"\xff{{ a }}", "cannot be read"),
        ("a.jinja", b"{{ a }}" + b" " * (1 << 20), "holds no chat template"),
        ("a.json", b"{}", "holds no chat template"),
        ("a.json", b"{{ a }}", "cannot be read"),
        ("a.json", b'{"chat_template": ["{{ a }}"]}', "holds no chat template"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        chosen_template(CheckpointConfig(source="a", chat_template=str(path)))


@pytest.mark.parametrize("name", ["a.jinja", "a.json"])
def test_a_file_s_text_takes_its_place_once(tmp_path, name):
    file = tmp_path / name
    file.write_text(TEXT if name.endswith("jinja") else json.dumps({"chat_template": TEXT}))
    config = CheckpointConfig(source="a", chat_template=str(file), add_bos=True)
    read = with_template_read(config)
    file.unlink()
    assert read == with_template_read(read) == config.model_copy(update={"chat_template": TEXT})
    for kept in (None, "tulu", TEXT):
        same = CheckpointConfig(source="a", chat_template=kept)
        assert with_template_read(same) == same
