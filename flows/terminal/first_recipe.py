"""A first recipe for a model and data that were looked at: settings that fit this machine, with the reason beside each."""

import re
from pathlib import Path

import yaml
from rich.console import Console

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.destination_config import StoreConfig
from dpo_core.contract.errors import ConfigError, from_os_error
from dpo_core.contract.source_config import DataSource
from flows.settings.overrides import Values, validated
from flows.terminal.first_look import LONGEST_LOOKED_AT, Look, dropped_of, formats_of, look
from flows.terminal.first_recipe_text import Fit, parameters_of, recipe_text, why_memory
from flows.terminal.memory import training_memory
from tasks.launch.compute import solve_batch
from tasks.text.terminal import say, tell

FREE_SHARE = (
    0.8  # of the memory; the rest is for the system, the libraries and what the estimate does not know
)
LENGTH_STEP = 64  # lengths are rounded up to a multiple of it
SMALL_MODEL, MIDDLE_MODEL = 5e8, 3e9  # parameters
RATES = {
    "small": (2e-5, 2e-4),
    "middle": (2e-6, 5e-5),
    "large": (5e-7, 2e-5),
}  # of all weights, of an adapter


def first_values(look: Look, name: str) -> tuple[Values, Fit]:
    """Return the settings of the first recipe, and how they fit here."""
    processes = max(1, look.machine.num_gpus)
    held_out = "0.1" if look.num_rows <= 2000 else "0.05" if look.num_rows <= 10_000 else "0.02"
    batch = 8 if look.num_rows < 2000 else 32 if look.num_rows < 20_000 else 128
    values: Values = {
        "name": name,
        "checkpoint": look.checkpoint.model_dump(mode="json", exclude_defaults=True),
        "data": {
            "sources": [
                {**source.model_dump(mode="json", exclude_defaults=True), "amount": source.amount}
                for source in look.sources
            ],
            "held_out": held_out,
            "max_length_tokens": _longest(look),
        },
        "optim": {},
        "train": {
            "global_batch_pairs": -(-batch // processes) * processes,
            "num_epochs": 1,
            "precision": "bf16" if look.machine.num_gpus else "fp32",
        },
        "evaluation": {
            "num_prompts": 64 if look.machine.num_gpus else 8,
            "max_new_tokens": _answer_tokens(look),
        },
        "compute": {"num_processes": processes} if processes > 1 else {},
    }
    if (look.size.num_parameters or SMALL_MODEL) < SMALL_MODEL:
        values["train"]["export_precision"] = "fp32"
    fit = _first_that_fits(look, values)
    for section, settings in fit.settings.items():
        values[section] = {**values.get(section, {}), **settings}
    values["optim"] = {"learning_rate": _rate(look, "adapter" in fit.settings)}
    return values, fit


def _longest(look: Look) -> int:
    """The longest pair that was seen, rounded up, within what the model was made for."""
    rounded = -(-look.lengths.max_sequence // LENGTH_STEP) * LENGTH_STEP
    return min(rounded, LONGEST_LOOKED_AT, look.context_tokens or LONGEST_LOOKED_AT)


def _answer_tokens(look: Look) -> int:
    """Room for 95 % of the answers in the data, at most 256: greedy answers take most of an evaluation's time."""
    longest = max(look.lengths.histograms[side].p95 for side in ("chosen", "rejected"))
    return min(256, -(-int(longest) // 16) * 16 or 16)


def _rate(look: Look, is_adapter: bool) -> float:
    parameters = look.size.num_parameters
    kind = (
        "large"
        if parameters is None or parameters >= MIDDLE_MODEL
        else ("middle" if parameters >= SMALL_MODEL else "small")
    )
    return RATES[kind][is_adapter]


def _first_that_fits(look: Look, values: Values) -> Fit:
    """All weights; then with activations recomputed; then shared out between the cards; then an adapter alone."""
    several = {"compute": {"sharding": "fsdp2"}} if values["compute"] else {}
    recomputed = {"train": {"gradient_checkpointing": True}}
    ways: list[Values] = [{}, recomputed]
    ways += [several, several | recomputed] if several else []
    ways.append(recomputed | several | {"adapter": {"kind": "lora", "rank": 16, "alpha": 32}})
    fit = Fit({}, None, True)
    for settings in ways:
        needed = _memory(look, values, settings)
        fit = Fit(
            settings,
            needed,
            needed is None or not look.memory_bytes or needed <= FREE_SHARE * look.memory_bytes,
        )
        if fit.fits:
            break
    return fit


def _memory(look: Look, values: Values, settings: Values) -> int | None:
    together = {
        **values,
        **{section: {**values.get(section, {}), **more} for section, more in settings.items()},
    }
    config = validated(together, "the first recipe")
    batch = solve_batch(config.train.global_batch_pairs, None, config.compute.num_processes)
    return sum(training_memory(config, look.size, batch).values()) or None


def write_first_recipe(
    model: str, data: list[str], path: Path, chat_template: str | None, store: Path, console: Console
) -> None:
    """Look at model and data, write the recipe to ``path``, say what was found. Raises ``ConfigError`` if it is there."""
    if path.exists():
        raise ConfigError(f"{path} exists already. Remove it, or name another file with --out.")
    tell(console, "Looking at model and data with the model's own tokenizer ...")
    found = look(
        CheckpointConfig(source=model, chat_template=chat_template),
        tuple(DataSource(source=source) for source in data),
        store,
    )
    values, fit = first_values(found, family_name(model))
    if store != StoreConfig().root:
        values["store"] = {"root": str(store)}
    text = recipe_text(found, values, fit, path)
    validated(yaml.safe_load(text), str(path))
    try:
        with path.open("x") as file:
            file.write(text)
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error
    for source, ledger in zip(found.sources, found.ledgers, strict=True):
        tell(
            console,
            f"{source.source}: {ledger.available_rows:,} rows, format {formats_of(ledger)}, {dropped_of(ledger)}",
        )
    tell(console, f"{model}: {parameters_of(found)}, {found.template}")
    tell(console, f"memory: {why_memory(found, fit)}")
    say(f"recipe: {path}   (next: pairline plan {path})")


def family_name(model: str) -> str:
    """Return a run family's name made of the model's: its last part, lower case, digits and dashes."""
    last = re.split(r"[/:]", model.rstrip("/"))[-1].lower()
    return re.sub(r"[^a-z0-9]+", "-", last).strip("-") + "-dpo" if re.search(r"[a-z0-9]", last) else "dpo"


# ----------------------------------------------------------------------------------------------------------- the text
