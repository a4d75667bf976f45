"""How large a model is, told without a network and without loading it."""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dpo_core.contract.config import AdapterConfig, CheckpointConfig
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.model_shape import ModelShape
from flows.terminal.known_models import KNOWN
from tasks.checkpoint.known_packages import PACKAGE_PREFIX, package_folder
from tasks.checkpoint.own_files import read_json_file
from tasks.checkpoint.safetensors_header import read_header

IN_A_NAME = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)
NO_ADAPTER = (
    "embed_tokens",
    "wte",
    "wpe",
    "lm_head",
    "embed_in",
    "embed_out",
    "gate",
)  # matrices that get none
MOST_DIGITS = 12  # of the number before the unit
UNITS = {"b": 1e9, "m": 1e6}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """``num_parameters`` is None where nothing tells it. The shape is known of local checkpoints and of the models that the
    shipped recipes name."""

    num_parameters: int | None
    origin: str  # how it is known
    shape: ModelShape | None = None
    linear_sides: dict[str, int] = field(
        default_factory=dict
    )  # last part of a layer's name -> sum of its inputs + outputs

    def adapter_parameters(self, adapter: AdapterConfig) -> int | None:
        """Return parameters of an adapter: rank x (inputs + outputs) of each target. None where the layers are not
        known.
        """
        names = self.linear_sides if adapter.target_modules == "all-linear" else adapter.target_modules
        sides = sum(self.linear_sides.get(name.rpartition(".")[2], 0) for name in names)
        return adapter.rank * sides if sides else None


def model_size(checkpoint: CheckpointConfig) -> ModelSize:
    """Find it out from the weights' headers of a local directory, from the shapes that are shipped, or from the name
    ("Qwen2.5-7B")."""
    folder = local_folder(checkpoint.source)
    if folder is None:
        known = KNOWN.get(checkpoint.source)
        if known is None:
            return _from_name(checkpoint.source)
        return ModelSize(
            known.num_parameters, f"the shape of {checkpoint.source} is known", known, known.linear_sides
        )
    shape = _shape(folder)
    try:
        shapes = {
            name: entry["shape"]
            for path in folder.glob("*.safetensors")
            for name, entry in read_header(path).items()
        }
    except CheckpointError:
        shapes = {}
    if shapes:
        return ModelSize(
            sum(map(math.prod, shapes.values())),
            "counted in the weights",
            shape,
            linear_sides=_linear_sides(shapes),
        )
    files = (
        [checkpoint.gguf_file]
        if checkpoint.gguf_file
        else sorted(path.name for path in folder.glob("*.gguf"))
    )
    return _from_name(files[0] if files else folder.name)


def local_folder(source: str) -> Path | None:
    """Return the folder of a checkpoint that is on this machine; None of one on the Hub."""
    if source.startswith(PACKAGE_PREFIX):
        try:
            return package_folder(source.removeprefix(PACKAGE_PREFIX))
        except CheckpointError:
            return None
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else None


def _shape(folder: Path) -> ModelShape | None:
    """What the configuration says of the shape, where that can be true."""
    try:
        config = read_json_file(folder / "config.json")
    except CheckpointError:
        return None
    of_text = config.get("text_config")  # of a model that sees, too
    return ModelShape.of(of_text if isinstance(of_text, dict) else config)


def _linear_sides(shapes: dict[str, list[int]]) -> dict[str, int]:
    sides: Counter[str] = Counter()
    for tensor, shape in shapes.items():
        name = tensor.removesuffix(".weight").rpartition(".")[2]
        if len(shape) == 2 and name not in NO_ADAPTER and ".experts." not in tensor:
            sides[name] += sum(shape)
    return dict(sides)


def _from_name(name: str) -> ModelSize:
    found = IN_A_NAME.findall(name)
    if not found:
        return ModelSize(None, f"unknown: {name} does not tell it")
    value, unit = found[-1]
    if len(value) > MOST_DIGITS:
        return ModelSize(None, f"unknown: {name} tells an impossible one")
    return ModelSize(int(float(value) * UNITS[unit.lower()]), f"from the name {name}")
