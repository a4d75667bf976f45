"""`pairline show-rows`, before the mixture is made and after."""

import io
import json
from pathlib import Path

import pytest
import yaml
from prefect.logging import disable_run_logger
from rich.console import Console
from typer.testing import CliRunner

from flows.settings.overrides import read_recipe
from flows.terminal import first_look
from flows.terminal.cli import app
from flows.terminal.show_rows import STYLES
from tasks.fetch_checkpoint import fetch_checkpoint
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import launcher_for
from tasks.launch.workplace import Workplace
from tasks.mix_data import mix_data
from tasks.text.marks import MARKS, marked
from tasks.text.terminal import show_styled
from tests.tiny_models import make_model


def shown(recipe: Path, count: int) -> str:
    done = CliRunner().invoke(app, ["show-rows", str(recipe), "--n", str(count)], catch_exceptions=False)
    return done.stdout


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.integration
def test_rows_are_those_of_the_mixture_once_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(first_look, "ROWS_SHOWN_OF", 4)
    rows = [{"prompt": f"q {i}", "chosen": "yes \x1b[2J", "rejected": "no"} for i in range(9)]
    rows[1]["rejected"] = ""
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    values = {
        "checkpoint": {"source": str(make_model(tmp_path / "sft"))},
        "data": {"sources": [{"source": str(tmp_path / "pairs.jsonl"), "amount": "1.0"}], "held_out": "1"},
        "store": {"root": str(tmp_path / "store")},
    }
    recipe.write_text(yaml.safe_dump(values))
    text = shown(recipe, 2)
    assert "2 of 3 pairs to train on, of the first rows of each source" in text
    assert "pairs.jsonl: 1 of 4 rows dropped (empty_answer 1)." in " ".join(text.split())
    assert "--- 2 of pairs.jsonl, rejected" in text
    assert "[[no" in text
    assert "\x1b" not in text, "what a row holds reaches the terminal as text"
    config = read_recipe(recipe, [])
    place = Workplace(tmp_path / "store", launcher_for(ComputeConfig(threads_per_process=1)))
    with disable_run_logger():
        policy = fetch_checkpoint.fn(config.checkpoint, place)
        mix_data.fn(config.data, config.quality, config.checkpoint, policy, place)
    assert "1 of 7 pairs to train on, of the mixture" in shown(recipe, 1)


def test_a_terminal_shows_what_is_trained_in_another_colour():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    texts = {"prompt": "asked", "trained": "answered \x1b[2J", "untrained": "header"}
    show_styled(console, [(marked(kind, text), STYLES[kind]) for kind, text in texts.items()])
    shown = console.file.getvalue()
    # What SGR has of them: 2 dim, 1 bold, 32 green, 33 yellow, 0 as before.
    assert shown.startswith("\x1b[2masked\x1b[0m")
    assert "\x1b[1;32m[[answered \\x1b[2J]]\x1b[0m" in shown
    assert "\x1b[33m((header))\x1b[0m" in shown
    assert set(STYLES) == set(MARKS)
