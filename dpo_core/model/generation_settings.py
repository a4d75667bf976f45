"""A checkpoint's own settings for generating (``generation_config.json``), made such that they can be written.

transformers reads settings that it refuses to write: ``do_sample: false`` beside a temperature (Llama 2's own), a ``top_p``
above 1. Kept as they are they would end a run when it saves its result, and so would every run that starts from that one.
Others it refuses to read as well: ``num_return_sequences: 4`` without sampling or beams. What it takes both ways, and nobody
can generate with, is put right or left out (``sound_settings``).
"""

import json
import logging
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from dpo_core.contract.errors import CheckpointError
from dpo_core.model.sound_settings import sound_settings

log = logging.getLogger(__name__)


def why_unwritable(config: GenerationConfig) -> str | None:
    """Return the library's reason not to write ``config``, None if it would."""
    try:
        config.validate(strict=True)
    except Exception as error:  # a value of a wrong type fails anywhere in there
        return " ".join(str(error).split())[:300]
    return None


def read_settings(folder: Path) -> GenerationConfig | None:
    """Return a checkpoint's own settings, made such that they can be read; None where there are none. Raises
    ``CheckpointError`` for a file that holds something else."""
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:  # no file, or no JSON in it: the library goes by config.json then
        return None
    except Exception as error:  # of settings that contradict each other, or of a wrong type
        reason = " ".join(str(error).split())[:300]
        try:
            settings = json.loads((folder / GENERATION_CONFIG_NAME).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):  # a number of thousands of digits, or nested as deeply
            settings = None
        if not isinstance(settings, dict):
            raise CheckpointError(
                f"{folder / GENERATION_CONFIG_NAME} holds no settings ({reason}). Correct it, or take it away."
            ) from error
        return _fit(settings, reason)


def writable(config: GenerationConfig, num_tokens: int) -> GenerationConfig:
    """Return ``config`` if it can be written and generated with; else as ``sound_settings`` and ``_fit`` make it, which is
    logged. ``num_tokens``: ids that there are."""
    settings, said = sound_settings(config.to_diff_dict(), num_tokens)
    if said:
        log.warning("generation_config.json cannot be generated with as it is: %s", "; ".join(said))
        try:
            config = GenerationConfig.from_dict(settings)
        except Exception as error:  # as in ``read_settings``
            return _fit(settings, " ".join(str(error).split())[:300])
    reason = why_unwritable(config)
    return config if reason is None else _fit(config.to_diff_dict(), reason)


def make_settings_writable(model: PreTrainedModel, num_tokens: int) -> None:
    """Make a model's own settings ``writable``. ``num_tokens``: of the tokenizer, of which some may not have a row yet."""
    if model.generation_config is not None:
        rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
        model.generation_config = writable(model.generation_config, max(rows, num_tokens))


def _fit(settings: dict[str, Any], reason: str) -> GenerationConfig:
    """Return settings with sampling switched on, as settings for sampling mean it; else that without those that are in the
    way, each of which is logged."""
    sampling = _made({**settings, "do_sample": True})
    if sampling is not None:
        log.warning(
            "generation_config.json cannot be written as it is (%s): do_sample is set to true", reason
        )
        return sampling
    kept: dict[str, Any] = {}
    for name in sorted(
        settings, key=lambda name: (not name.endswith("_token_id"), name != "num_beams", name)
    ):
        if _made({**kept, name: settings[name]}) is not None:
            kept[name] = settings[name]
        elif name != "do_sample" and _made({**kept, name: settings[name], "do_sample": True}) is not None:
            kept |= {name: settings[name], "do_sample": True}
    left_out = sorted(name for name in settings if name not in kept)
    log.warning(
        "generation_config.json cannot be written as it is (%s): without %s", reason, ", ".join(left_out)
    )
    return _made(kept) or GenerationConfig()


def _made(settings: dict[str, Any]) -> GenerationConfig | None:
    try:
        made = GenerationConfig.from_dict(settings)
    except Exception:  # of a wrong type
        return None
    return made if why_unwritable(made) is None else None


def check_ids(model: PreTrainedModel, source: str) -> None:
    """Raise ``CheckpointError`` for an end of text that is no token's number, in either configuration."""
    for file, config in (("config.json", model.config), ("generation_config.json", model.generation_config)):
        value = getattr(config, "eos_token_id", None)
        ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
        if not all(type(one) is int and one >= 0 for one in ids):
            raise CheckpointError(
                f"{file} of {source} has eos_token_id {value!r}, expected a token's number or a list of them. "
                "Correct it in the checkpoint."
            )
