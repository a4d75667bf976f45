"""Whether the model has a vector for every place of the longest sequence."""

import json
from pathlib import Path

from dpo_core.contract.checkpoint_files import CONFIG
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.model_shape import learned_positions


def check_positions(folder: Path, longest: int) -> None:
    """Raise ``CheckpointError`` if the model whose config lies in ``folder`` has none for the last of ``longest`` tokens."""
    try:
        positions = learned_positions(json.loads((folder / CONFIG).read_bytes()))
    except (OSError, ValueError, AttributeError):
        return  # a tokenizer by itself
    if positions is not None and longest > positions:
        raise CheckpointError(
            f"The longest sequence of the mixture has {longest:,} tokens, and the model has vectors for {positions:,} "
            f"places (config.json). Set data.max_length_tokens to {positions} or less."
        )
