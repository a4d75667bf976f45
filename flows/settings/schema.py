"""What a recipe may hold, for editors and people: JSON Schema files and the page docs/settings.md, made of the settings.

``make reference`` writes them; a test compares them with what the settings say.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dpo_core.contract.amount import AMOUNT_PATTERN
from flows.settings.stage_config import StageConfig
from flows.settings.sweep_config import SweepConfig

HERE = Path(__file__).parent
RECIPE_SCHEMA, SWEEP_SCHEMA = HERE / "recipe.schema.json", HERE / "sweep.schema.json"

INTRODUCTION = (
    "Every setting of a recipe, which is also the form of `dpo-stage/manual` and what `--set section.setting=value` takes.",
    "Made by `make reference` from the settings themselves. `pairline init` writes a first recipe. An editor completes and",
    "checks a recipe whose first line names the schema, as those in `recipes/` do:",
    "`# yaml-language-server: $schema=../flows/settings/recipe.schema.json`.",
)

Schema = dict[str, Any]


def recipe_schema() -> str:
    """Return the JSON Schema of a recipe."""
    return _text(StageConfig)


def sweep_schema() -> str:
    """Return the JSON Schema of a sweep's recipe."""
    return _text(SweepConfig)


def _text(kind: type[BaseModel]) -> str:
    return json.dumps(_with_numbers(kind.model_json_schema()), indent=2)


def _with_numbers(schema: Any) -> Any:
    """Amounts are text in a form, whose numbers would lose their dot; in a recipe 0.5 and 40 are as good."""
    if isinstance(schema, list):
        return [_with_numbers(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _with_numbers(value) for key, value in schema.items()}
    return {**made, "type": ["string", "number"]} if made.get("pattern") == AMOUNT_PATTERN else made


# ----------------------------------------------------------------------------------------------------------- the page


def settings_page() -> str:
    """Return every setting with its type, bounds, default and meaning, as Markdown."""
    whole = StageConfig.model_json_schema()
    sweep = SweepConfig.model_json_schema()
    lines = ["# Settings", "", *INTRODUCTION, "", *_section("", whole, whole, sections=False)]
    for name, field in whole["properties"].items():
        if section := _section_of(field, whole):
            lines += _section(name, section, whole)
    lines += _section("sweep", sweep["$defs"]["GridConfig"], sweep, " (`pairline sweep` alone)")
    return "\n".join(lines)


def _section(name: str, section: Schema, whole: Schema, note: str = "", sections: bool = True) -> list[str]:
    """A section's table. ``sections``: settings that are sections themselves get a row, too."""
    required = section.get("required", [])
    rows = [
        f"| `{setting}` | {_kind(field, whole)} | {_default(field, setting in required)} | {_meaning(field)} |"
        for setting, field in section["properties"].items()
        if sections or _section_of(field, whole) is None
    ]
    head = [f"## {name}{note}", "", _cell(section["description"]), ""] if name else []
    lines = [*head, "| setting | is | default | |", "|---|---|---|---|", *rows, ""]
    for setting, field in section["properties"].items() if sections else ():
        if (inner := _section_of(field.get("items", field), whole)) is not None:
            lines += _section(f"{name}.{setting}{'[]' if 'items' in field else ''}", inner, whole)
    return lines


def _section_of(field: Schema, whole: Schema) -> Schema | None:
    """The section that a field is, or may be left out; None for a plain setting."""
    if any(option.get("type") == "null" for option in field.get("anyOf", ())):
        field = field["anyOf"][0]
    return whole["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else None


def _kind(field: Schema, whole: Schema) -> str:
    """Type and bounds in words: "integer, at least 1"."""
    if "anyOf" in field:
        return " or ".join(_kind(option, whole) for option in field["anyOf"] if option.get("type") != "null")
    if "$ref" in field:
        return "see below"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array" and "$ref" in field["items"]:
        return "list, see below"
    if field.get("type") == "array":
        return f"list of {_kind(field['items'], whole)}"
    if field.get("type") == "object":
        return "names with values"
    if field.get("pattern") == AMOUNT_PATTERN:
        return "proportion (`0.5`) or count (`40`)"
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    kind = {"string": "text", "boolean": "true or false"}.get(field["type"]) or str(field["type"])
    kind = "path" if field.get("format") == "path" else kind
    return ", ".join(
        [kind, *(f"{word} {_number(field[bound])}" for bound, word in bounds.items() if bound in field)]
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) or 1000 <= value < 1e12 else f"{value:g}"


def _default(field: Schema, is_required: bool) -> str:
    if is_required:
        return "must be given"
    value = field.get("default")
    return "empty" if value in (None, [], {}) else f"`{json.dumps(value).strip(chr(34))}`"


def _meaning(field: Schema) -> str:
    return _cell(field.get("description", ""))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
