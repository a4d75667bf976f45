"""The day of a template that writes one, and end marks, told from a checkpoint's files."""

import datetime
import json
from pathlib import Path

import pytest

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import ConfigError
from tasks.checkpoint.end_mark import end_mark_warning
from tasks.checkpoint.template_date import template_date
from tests.tiny_models import CHATML, make_tokenizer

DAY = datetime.date(2026, 1, 2)
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML


def own(folder: Path, text: str) -> None:
    make_tokenizer(text).save_pretrained(folder)


def in_the_config(folder: Path, text: str) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": text}))


def named_in_the_config(folder: Path, text: str) -> None:
    templates = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": text}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))


@pytest.mark.parametrize("write", [own, in_the_config, named_in_the_config])
def test_a_job_has_a_day_only_where_the_template_writes_one(tmp_path, write):
    write(tmp_path, CHATML)
    assert template_date(tmp_path, None, DAY) is None
    assert template_date(tmp_path, DATED, DAY) == "2026-01-02"
    write(tmp_path, DATED)
    assert template_date(tmp_path, None, DAY) == "2026-01-02"
    assert template_date(tmp_path, "chatml", DAY) is None
    before = datetime.date.today().isoformat()
    assert before <= template_date(tmp_path, None, None) <= datetime.date.today().isoformat()


def said_of_end(folder, chosen: str | None = None) -> str | None:
    return end_mark_warning(folder, CheckpointConfig(source="sft", chat_template=chosen))


def test_a_template_without_any_end_mark_is_told_from_its_text(tmp_path):
    without = CHATML.replace("<|im_end|>", "")
    own(tmp_path, without)
    assert "no special token" in (said_of_end(tmp_path) or "")
    assert said_of_end(tmp_path, "{{ eos_token }}") is None
    assert said_of_end(tmp_path, "tulu") is None
    own(tmp_path, CHATML)
    assert said_of_end(tmp_path) is None
    assert said_of_end(tmp_path / "none") is None
    assert "no special token" in (said_of_end(tmp_path, "r1_simple_chat") or "")
    (tmp_path / "chosen.jinja").write_text(without)
    assert "no special token" in (said_of_end(tmp_path, str(tmp_path / "chosen.jinja")) or "")
    with pytest.raises(ConfigError, match=r"none\.jinja is no file"):
        said_of_end(tmp_path, str(tmp_path / "none.jinja"))
