"""`pairline gc` says what would go and asks first."""

from pathlib import Path

import pytest
import typer

from dpo_core.contract.errors import ConfigError
from flows.terminal import server_commands as commands
from tests.tasks.run.test_garbage import DAYS, Store


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    return Store(tmp_path.resolve()).entry(1, [], 50)


def gc(store: Path, **answers: bool) -> None:
    commands.gc(store, DAYS, 1, **answers)


def test_where_nobody_can_be_asked_nothing_is_removed(entry, capsys):
    with pytest.raises(ConfigError, match="--yes removes without asking"):
        gc(entry.parents[1])
    assert str(entry) in capsys.readouterr().out
    assert entry.is_dir()


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_decides(entry, monkeypatch, answer):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", lambda question: answer)
    gc(entry.parents[1])
    assert entry.is_dir() is not answer


def test_a_schedule_says_yes_and_a_dry_run_asks_nobody(entry):
    gc(entry.parents[1], dry_run=True)
    assert entry.is_dir()
    gc(entry.parents[1], yes=True)
    assert not entry.exists()
