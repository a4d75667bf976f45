"""What computes the model, looked at before anything is fetched or booked: can it do this one, is it there at all."""

from collections.abc import Iterator
from pathlib import Path

from dpo_core.contract.checkpoint_files import CONFIG
from dpo_core.contract.config import FLEX
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.float8 import check_float8
from dpo_core.contract.olmo_core import check_olmo_core
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.tensor_parallel import check_tensor_degree
from flows.settings.stage_config import StageConfig
from flows.step_software import StepPython, check_image_holds, how_to_get_it, missing_in, python_of_steps
from tasks.checkpoint.own_files import read_json_file
from tasks.image.image_ref import OLMO_CORE
from tasks.launch.launcher import kind_of

MODULE, FLOAT8_MODULE = "olmo_core", "torchao"


def check_implementation(config: StageConfig) -> None:
    """Raise ``ConfigError`` for a model that ``train.implementation`` cannot compute or ``compute.tensor_degree`` not share
    out, or where the implementation, or the compiler that it would call, is not installed."""
    _check_compiler(config)
    check_models(config)
    if config.train.implementation != "olmo_core":
        return
    python = python_of_steps(config)
    if python is None:
        check_image_holds(config, "OLMo-core", OLMO_CORE, "train.implementation is olmo_core")
    elif not python.why_not:
        _check_python(config, python)


def check_models(config: StageConfig) -> None:
    """Raise ``ConfigError`` for a model whose config.json is here that cannot be computed as the recipe says, on whatever
    machine."""
    for source, folder in _models(config):
        if _is_here(folder):
            _check_model(config, folder, source)


def unchecked_models(config: StageConfig) -> str:
    """Return what a plan says of models whose config.json is not here; empty where all were looked at, or none had to be."""
    degree, is_olmo = config.compute.tensor_degree, config.train.implementation == "olmo_core"
    asked = [
        *(["OLMo-core can train"] if is_olmo else []),
        *([f"compute.tensor_degree {degree} can share out"] if degree > 1 else []),
    ]
    unseen = dict.fromkeys(source for source, folder in _models(config) if not _is_here(folder))
    if not asked or not unseen:
        return ""
    return (
        f"Not checked: whether {' and '.join(asked)} {', '.join(unseen)}, whose config.json is not here. A run looks once "
        "it is fetched."
    )


def check_fetched(config: StageConfig, model: CheckpointRef) -> None:
    """Raise ``ConfigError`` for a model that cannot be computed as the recipe says: of one from the Hub config.json is here
    only now, and neither have data been mixed nor is a card booked."""
    _check_model(config, model.path, model.source)


def _check_model(config: StageConfig, folder: Path, source: str) -> None:
    degree, is_olmo = config.compute.tensor_degree, config.train.implementation == "olmo_core"
    if degree > 1 or is_olmo:
        described = read_json_file(folder / CONFIG)
        check_tensor_degree(described, source, degree)
        if is_olmo:
            check_olmo_core(described, source, bool(config.checkpoint.allow_remote_code))
            check_float8(described, source, config.train.float8)


def _check_compiler(config: StageConfig) -> None:
    """On an image's CPU norms are not compiled, so nothing is asked of it; an image that is named is not looked into."""
    image, train = config.image, config.train
    asked = ""
    if train.attention == FLEX:
        asked = f"train.attention {FLEX}"
    elif train.compile_regions and image.variant.startswith("cuda"):
        asked = "train.compile_regions"
    if asked and kind_of(config.compute).runs_in_image and not image.use and not image.compiler:
        raise ConfigError(
            f"{asked} needs a C compiler where steps run, and the image that they would run in holds none.",
            "Set image.compiler to true, and make its base: make base-image COMPILER=1.",
        )


def _models(config: StageConfig) -> Iterator[tuple[str, Path]]:
    """Policy and reference, with the folder of one that is not fetched."""
    for source in (config.checkpoint.source, config.reference.source):
        if source:
            yield source, Path(source).expanduser()


def _is_here(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _check_python(config: StageConfig, python: StepPython) -> None:
    float8 = config.train.float8
    missing = missing_in(python.path, [MODULE] if float8 == "none" else [MODULE, FLOAT8_MODULE])
    if MODULE in missing:
        raise ConfigError(
            f"train.implementation is olmo_core, and {python.path}, which steps run in, does not have OLMo-core.",
            how_to_get_it(config, python),
        )
    if missing:
        raise ConfigError(
            f"train.float8 is {float8}, and {python.path}, which steps run in, does not have torchao.",
            f"{how_to_get_it(config, python)} Or set train.float8 to none.",
        )
