"""The first recipe as YAML, with the reason beside each setting."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpo_core.contract.objectives import OBJECTIVES
from dpo_core.contract.visible import one_line
from flows.settings.overrides import Values
from flows.settings.schema import RECIPE_SCHEMA
from flows.terminal.first_look import Look, dropped_of, formats_of

GIB = 2**30


COMMENT_COLUMN = 44


@dataclass(frozen=True, slots=True)
class Fit:
    """A way to train that fits the memory, or the thriftiest of those that do not."""

    settings: Values
    needed_bytes: int | None  # of a process; None where the model's size is not known
    fits: bool


def recipe_text(look: Look, values: Values, fit: Fit, path: Path) -> str:
    """Return the recipe as YAML with comments."""
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
        f"checkpoint:   # {parameters_of(look)}, {look.template}",
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
        f"loss:   # docs/losses.md has {len(OBJECTIVES)}; set beta together with the name",
        _line(2, "name", "dpo_norm", "DPO on log-probabilities per token, as Tulu 3 and OLMo 2"),
        _line(2, "beta", 5.0, "usual for dpo_norm; 0.1 for dpo, 2 for simpo"),
        "",
        "optim:",
        _line(2, "learning_rate", values["optim"]["learning_rate"], _why_rate(look, "adapter" in values)),
        "",
        "train:",
        *_train(look, train, fit, steps),
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


def _train(look: Look, train: Values, fit: Fit, steps: int) -> list[str]:
    return [
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
        f"  # memory: {why_memory(look, fit)}",
    ]


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


def parameters_of(look: Look) -> str:
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


def why_memory(look: Look, fit: Fit) -> str:
    here = f"{_size(look.memory_bytes)} {'on a card' if look.card_bytes else 'here'}"
    if fit.needed_bytes is None:
        return f"unknown, as the number of parameters is; {here}"
    needed = f"about {_size(fit.needed_bytes)} a process, of {here}"
    if fit.fits:
        return needed
    return f"{needed}: TOO MUCH. Lower data.max_length_tokens, take a smaller model, or run it on another machine"
