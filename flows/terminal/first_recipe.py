"""A first recipe for a model and data that were looked at: settings that fit this machine, with the reason beside each."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from dpo_core.contract.config import CheckpointConfig, DataSource, StoreConfig
from dpo_core.contract.errors import ConfigError, from_os_error
from dpo_core.contract.visible import one_line
from flows.settings.overrides import Values, validated
from flows.settings.schema import RECIPE_SCHEMA
from flows.terminal.first_look import LONGEST_LOOKED_AT, Look, dropped_of, formats_of, look
from flows.terminal.memory import training_memory
from tasks.launch.compute import solve_batch
from tasks.text.terminal import say, tell

GIB = 2**30
FREE_SHARE = (
    0.8  # of the memory; the rest is for the system, the libraries and what the estimate does not know
)
LENGTH_STEP = 64  # lengths are rounded up to a multiple of it
COMMENT_COLUMN = 44
SMALL_MODEL, MIDDLE_MODEL = 5e8, 3e9  # parameters
RATES = {
    "small": (2e-5, 2e-4),
    "middle": (2e-6, 5e-5),
    "large": (5e-7, 2e-5),
}  # of all weights, of an adapter


@dataclass(frozen=True, slots=True)
class Fit:
    """A way to train that fits the memory, or the thriftiest of those that do not."""

    settings: Values
    needed_bytes: int | None  # of a process; None where the model's size is not known
    fits: bool


def first_values(look: Look, name: str) -> tuple[Values, Fit]:
    """The settings of the first recipe, and how they fit here."""
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
    tell(console, f"{model}: {_parameters(found)}, {found.template}")
    tell(console, f"memory: {_why_memory(found, fit)}")
    say(f"recipe: {path}   (next: pairline plan {path})")


def family_name(model: str) -> str:
    """A run family's name made of the model's: its last part, lower case, digits and dashes."""
    last = re.split(r"[/:]", model.rstrip("/"))[-1].lower()
    return re.sub(r"[^a-z0-9]+", "-", last).strip("-") + "-dpo" if re.search(r"[a-z0-9]", last) else "dpo"


# ----------------------------------------------------------------------------------------------------------- the text


def recipe_text(look: Look, values: Values, fit: Fit, path: Path) -> str:
    """The recipe as YAML with comments."""
    data, train = values["data"], values["train"]
    steps = -(-round(look.num_rows * (1 - float(data["held_out"]))) // train["global_batch_pairs"])
    lengths = look.lengths
    lines = [
        f"# yaml-language-server: $schema={RECIPE_SCHEMA}",
        f"# Made by `pairline init`, for this machine: {_machine(look)}.",
        f"#   pairline plan {path}     what a run would do",
        f"#   pairline run {path}      the run; start it again after a crash and it goes on",
        "# What is not here has its default; every setting: `pairline schema`, docs/settings.md.",
        _line(0, "name", values["name"], "names artifacts and the published model"),
        "",
        f"checkpoint:   # {_parameters(look)}, {look.template}",
        *(_line(2, key, value) for key, value in values["checkpoint"].items()),
        "",
        "data:",
        "  sources:",
        *_sources(look, data["sources"]),
        _line(2, "held_out", data["held_out"], "of the prompts, kept for the evaluation"),
        _line(
            2, "max_length_tokens", data["max_length_tokens"], _why_length(look, data["max_length_tokens"])
        ),
        f"  # tokens on average: prompt {lengths.mean_prompt:g}, chosen {lengths.mean_chosen:g}, rejected "
        f"{lengths.mean_rejected:g}",
        "",
        "loss:   # docs/losses.md has sixteen; set beta together with the name",
        _line(2, "name", "dpo_norm", "DPO on log-probabilities per token, as Tulu 3 and OLMo 2"),
        _line(2, "beta", 5.0, "usual for dpo_norm; 0.1 for dpo, 2 for simpo"),
        "",
        "optim:",
        _line(2, "learning_rate", values["optim"]["learning_rate"], _why_rate(look, "adapter" in values)),
        "",
        "train:",
        _line(
            2, "global_batch_pairs", train["global_batch_pairs"], f"about {steps:,} optimizer steps an epoch"
        ),
        _line(2, "num_epochs", train["num_epochs"]),
        _line(
            2,
            "precision",
            train["precision"],
            "autocast over fp32 weights" if look.machine.num_gpus else "no GPU here",
        ),
        *(
            [_line(2, "gradient_checkpointing", True, "less memory, about a third slower")]
            if train.get("gradient_checkpointing")
            else []
        ),
        *(
            [_line(2, "export_precision", "fp32", "bf16 would round small updates of a small model away")]
            if "export_precision" in train
            else []
        ),
        f"  # memory: {_why_memory(look, fit)}",
        *_section(values, "adapter"),
        "",
        "evaluation:",
        _line(2, "num_prompts", values["evaluation"]["num_prompts"], "answered before and after"),
        _line(
            2,
            "max_new_tokens",
            values["evaluation"]["max_new_tokens"],
            "95 % of the answers in the data are no longer, or 256",
        ),
        *_section(values, "compute"),
        *_section(values, "store"),
        "",
        "# upload: {repo_id: org/name}   # without it the checkpoint stays in the store: .pairline/published",
        "# gate: {accuracy_at_least: 0.6}   # a checkpoint that misses it is not released: docs/gates.md",
    ]
    return "\n".join(lines) + "\n"


def _line(indent: int, key: str, value: Any, comment: str = "") -> str:
    text = f"{' ' * indent}{key}: {_yaml(value)}"
    return f"{text.ljust(COMMENT_COLUMN)} # {one_line(comment)}" if comment else text


def _yaml(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, float):
        return (
            re.sub(r"e-0(\d)", r"e-\1", f"{value:.1e}")
            if value < 1e-3
            else f"{value:g}"
            if value % 1
            else f"{value:.1f}"
        )
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _section(values: Values, name: str) -> list[str]:
    return (
        ["", f"{name}:", *(_line(2, key, value) for key, value in values[name].items())]
        if values.get(name)
        else []
    )


def _sources(look: Look, sources: list[Values]) -> list[str]:
    lines = []
    for source, ledger in zip(sources, look.ledgers, strict=True):
        lines += [
            f"    # {ledger.available_rows:,} rows; format {formats_of(ledger)}; {dropped_of(ledger)}",
            f"    - {_yaml(source)}",
        ]
    return lines


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.0f} MiB"


def _machine(look: Look) -> str:
    machine = look.machine
    cards = f"{machine.num_gpus} GPUs of {look.card_bytes / GIB:.0f} GiB" if machine.num_gpus else "no GPU"
    return f"{machine.num_cores} cores, {cards}, {machine.memory_bytes / GIB:.0f} GiB of memory"


def _parameters(look: Look) -> str:
    parameters = look.size.num_parameters
    return one_line(
        f"{parameters:,} parameters, {look.size.origin}" if parameters else f"parameters {look.size.origin}"
    )


def _why_length(look: Look, chosen: int) -> str:
    if look.cut_fraction or look.lengths.max_sequence > chosen:
        of_model = chosen == look.context_tokens
        return (
            f"{'what the model was made for' if of_model else 'raise it if memory allows'}; the longest of "
            f"{sum(one.kept for one in look.ledgers):,} looked at has "
            f"{look.lengths.max_sequence:,}{' or more' if look.cut_fraction else ''}, longer ones are cut"
        )
    return f"the longest of those looked at has {look.lengths.max_sequence:,}; longer ones are cut"


def _why_rate(look: Look, is_adapter: bool) -> str:
    if is_adapter:
        return "an adapter wants ten to a hundred times the rate of all weights"
    return "a start: Tulu 3 took 5e-7 at 8B, the quickstart takes 2e-5 at 135M"


def _why_memory(look: Look, fit: Fit) -> str:
    here = f"{_size(look.memory_bytes)} {'on a card' if look.card_bytes else 'here'}"
    if fit.needed_bytes is None:
        return f"unknown, as the number of parameters is; {here}"
    needed = f"about {_size(fit.needed_bytes)} a process, of {here}"
    if fit.fits:
        return needed
    return f"{needed}: TOO MUCH. Lower data.max_length_tokens, take a smaller model, or run it on another machine"
