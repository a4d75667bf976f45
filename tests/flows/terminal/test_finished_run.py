"""A run whose every part is there is not run again; whatever was touched since, it is."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import flows.terminal.finished_run
from dpo_core.contract.results import ENVIRONMENT_FILE
from flows.dpo_stage import dpo_stage
from flows.settings.stage_config import StageConfig
from flows.terminal.cli import app
from flows.terminal.finished_run import finished_run
from tasks.handoff.schema import read_handoff
from tasks.report.page import REPORT_FILE
from tasks.run.environment import RunEnvironment, run_environment
from tasks.run.files import read_run_files
from tasks.run.garbage import reachable, store_entries
from tests.flows.conftest import last_run, launches, tiny_config
from tests.prefect_database import new_prefect_home
from tests.tiny_stage import make_rows, write_inputs
from tests.warm.started import python_path

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server", "clean_checkout")]
RECIPE = "recipe.yaml"


def without_changes(config: StageConfig) -> RunEnvironment:
    return run_environment(config).model_copy(update={"has_local_changes": False})


@pytest.fixture
def clean_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who changes these lines runs their tests with local changes, after which no code is known to be the same."""
    monkeypatch.setattr(flows.terminal.finished_run, "run_environment", without_changes)


@pytest.fixture(scope="module")
def config(prefect_server, tmp_path_factory) -> StageConfig:
    """Of a complete run on inputs of its own."""
    folder = tmp_path_factory.mktemp("finished")
    inputs = write_inputs(folder / "inputs")
    rows = [*make_rows(60)[:1], *make_rows(5, seed=9)]  # the first is one of the mixture's, too
    (inputs / "safety.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = tiny_config(
        inputs,
        folder / "store",
        evaluation={"every": 10, "sets": [{"name": "safety", "source": str(inputs / "safety.jsonl")}]},
        gate={"sets": {"safety": {"accuracy_at_least": 0.0}}},
        train={"checkpoint_every": 10, "keep_best": {"metric": "rewards/margins", "mode": "min"}},
    )
    dpo_stage(made)
    environment = last_run(made.store.root)[0] / ENVIRONMENT_FILE
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "has_local_changes": False}))
    return made


def changed(config: StageConfig, **sections: dict) -> StageConfig:
    values = config.model_dump()
    return StageConfig.model_validate(
        {**values, **{name: {**values[name], **new} for name, new in sections.items()}}
    )


def test_a_complete_run_is_found_without_prefect_and_starts_nothing(config):
    before = launches(config.store.root)
    folder = last_run(config.store.root)[0]
    assert finished_run(config) == folder
    assert launches(config.store.root) == before
    script = "import sys, flows.terminal.finished_run; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"beta": 0.5}},
        {"optim": {"learning_rate": 2e-3}},
        {"gate": {"approval": "person"}},
        {"upload": {"repo_id": "org/model"}},
        {"evaluation": {"num_prompts": 2}},
    ],
    ids=lambda sections: next(iter(sections)),
)
def test_other_settings_are_another_run(config, sections):
    assert finished_run(changed(config, **sections)) is None


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def of_store(pattern: str) -> Callable[[StageConfig], Path]:
    return lambda config: next(path for path in sorted(config.store.root.glob(pattern)) if path.is_file())


@pytest.mark.parametrize(
    "place",
    [
        lambda config: Path(config.data.sources[0].source),
        lambda config: Path(config.evaluation.sets[0].source),
        lambda config: Path(config.checkpoint.source) / "model.safetensors",
        of_store("checkpoints/*/model.safetensors"),
        of_store("export/*/checkpoint/model.safetensors"),
        of_store("published/*/model.safetensors"),
        of_store("published/*/README.md"),
        of_store("handoff/*/handoff.json"),
        of_store("mix/*/data/train/*"),
        of_store("reference/*/reference/*"),
    ],
    ids=[
        "data",
        "set",
        "checkpoint",
        "snapshot",
        "export",
        "published",
        "card",
        "hand-off",
        "mixture",
        "reference",
    ],
)
@pytest.mark.parametrize("change", [flipped, lambda content: None], ids=["changed", "gone"])
def test_whatever_was_touched_since_is_looked_at_again(config, place, change):
    path = place(config)
    before, after = path.read_bytes(), change(path.read_bytes())
    results = {result: result.read_bytes() for result in config.store.root.glob("*/*/result.json")}
    try:
        path.unlink() if after is None else path.write_bytes(after)
        assert finished_run(config) is None
    finally:
        path.write_bytes(before)
        for result, content in results.items():  # a result whose files are damaged is taken away
            result.write_bytes(content)
    assert finished_run(config) is not None


def test_a_named_set_is_measured_kept_apart_judged_and_shown(config):
    folder, record = last_run(config.store.root)
    run = read_run_files(folder)
    assert (run.sets.held_out_rows, run.sets.train_rows) == (6, 0)
    assert run.mixture.per_source[0].dropped == {"in_held_out_set": 1}
    assert [one["held_out/safety/pairs"] for one in run.evaluations] == [6, 6, 6]
    assert run.evaluation.before["held_out/safety/rewards/accuracies"] == 0.5
    assert len(run.evaluation.set_answers["safety"]) == 3
    assert [(check.rule, check.passed) for check in run.gate] == [
        ("safety: held-out accuracy at least", True)
    ]
    page = (folder / REPORT_FILE).read_text()
    for shown in ("By held-out set", "Of the mixture 1 row went because a set has its prompt"):
        assert shown in page
    assert Path(record.outputs["sets"]) in reachable(
        config.store.root, [record], list(store_entries(config.store.root))
    )


def test_the_weights_of_any_kept_step_are_exported_by_the_command_line(config, tmp_path):
    """Handed off is the best step, as the report says; another one is to be had."""
    store, results = config.store.root, CliRunner()
    folder, record = last_run(store)
    handoff = read_handoff(Path(record.outputs["handoff"]))
    assert handoff.best is not None
    assert f"step {handoff.best.step}" in (folder / REPORT_FILE).read_text()

    def exported(step: str) -> dict[str, torch.Tensor]:
        out = tmp_path / f"of {step}"
        asked = ["export", "--store", str(store), "--step", step, "--out", str(out)]
        done = results.invoke(app, asked)
        assert done.exit_code == 0, done.output
        assert str(out) in done.output.replace("\n", "")
        return AutoModelForCausalLM.from_pretrained(out).state_dict()

    handed_off = AutoModelForCausalLM.from_pretrained(handoff.checkpoint.directory).state_dict()
    assert exported("best").keys() == handed_off.keys()
    best, last = exported(str(handoff.best.step)), exported("20")
    assert all(torch.equal(best[name], handed_off[name]) for name in handed_off)
    assert not all(torch.equal(last[name], handed_off[name]) for name in handed_off)
    refused = results.invoke(app, ["export", "--store", str(store), "--step", "3"])
    assert refused.exit_code != 0


def test_other_code_is_not_trusted(config, monkeypatch):
    later = without_changes(config).model_copy(update={"commit": "0" * 40})
    monkeypatch.setattr(flows.terminal.finished_run, "run_environment", lambda config: later)
    assert finished_run(config) is None


def test_the_command_line_says_so_and_ends_with_the_same_lines(config, tmp_path):
    """Where no checkout is known to be without local changes it runs again, as with ``--again``."""
    recipe = tmp_path / RECIPE
    recipe.write_text(json.dumps(config.model_dump(mode="json")))
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PAIRLINE_"))
    }
    own |= {"PYTHONPATH": python_path(), "HOME": str(tmp_path)}
    new_prefect_home(config.store.root / "prefect")

    def lines(*options: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "flows.terminal", "run", str(recipe), *options],
            env=own,
            text=True,
            capture_output=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first, second = lines("--again"), lines()
    assert not any("nothing to do" in line for line in first)
    if not without_changes(config).commit or run_environment(config).has_local_changes:
        assert second[-1] == first[-1]
    else:
        assert "nothing to do" in second[0]
        assert second[-3:] == first[-3:]
