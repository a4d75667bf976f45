"""The chat template that a recipe chooses instead of the checkpoint's own, as jobs are told it: a name, or its text."""

from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.chat_templates import MAX_TEMPLATE_CHARACTERS, TEMPLATE_NAMES, is_template_text
from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError, ConfigError
from tasks.checkpoint.own_files import read_json_file, read_text_file


@dataclass(frozen=True, slots=True)
class ChosenTemplate:
    """``template``: a name, a template's text, or None for the checkpoint's own."""

    template: str | None = None
    add_bos: bool = False


def chosen_template(config: CheckpointConfig) -> ChosenTemplate:
    """Return what ``checkpoint.chat_template`` and ``add_bos`` mean. Raises ``ConfigError`` for a file that is none."""
    chosen = config.chat_template
    if chosen is None or chosen in TEMPLATE_NAMES or is_template_text(chosen):
        return ChosenTemplate(chosen, config.add_bos)
    return ChosenTemplate(_read(Path(chosen).expanduser()), config.add_bos)


def with_template_read(config: CheckpointConfig) -> CheckpointConfig:
    """Return the settings with a template's text in the place of its file, which may change while a run goes on. Raises
    ``ConfigError`` for a file that is none."""
    text = chosen_template(config).template
    return config if text == config.chat_template else config.model_copy(update={"chat_template": text})


def _read(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(
            f"checkpoint.chat_template {path} is no file (looked in {Path.cwd()}) and no template's name. Give the path of "
            f"a .jinja file, or one of {', '.join(TEMPLATE_NAMES)}."
        )
    try:
        text = read_json_file(path).get("chat_template") if path.suffix == ".json" else read_text_file(path)
    except CheckpointError as error:
        raise ConfigError(
            f"checkpoint.chat_template: {error.problem}", "Give a readable text file."
        ) from error
    if not isinstance(text, str) or not is_template_text(text) or len(text) > MAX_TEMPLATE_CHARACTERS:
        raise ConfigError(
            f"checkpoint.chat_template {path} holds no chat template: one writes something ({{{{ ... }}}}) in at most "
            f"{MAX_TEMPLATE_CHARACTERS:,} characters. Give the path of a .jinja file, or a .json with a `chat_template`."
        )
    return text
