"""``pairline image``: the trainer image without a run, its build's output on the terminal."""

from pathlib import Path

from rich.console import Console

from flows.serve.local_prefect import start_prefect
from flows.settings.stage_config import StageConfig
from tasks.image.cluster_image import FileKind, write_cluster_image
from tasks.image.config import check_cluster_variant
from tasks.image.push import load_login
from tasks.image.trainer_image import fill_wheelhouse, trainer_image
from tasks.text.terminal import tell


def make_image(
    config: StageConfig, console: Console, only_wheelhouse: bool, file: tuple[FileKind, Path] | None = None
) -> str:
    """Return the image's reference, the folder of the wheels, or the ``file`` of a cluster's. Raises what ``trainer_image``
    and ``write_cluster_image`` raise, and ``ConfigError`` for an image that a cluster's nodes could not use."""

    def say(line: str) -> None:
        tell(console, line)

    if config.compute.launcher == "slurm":
        check_cluster_variant(config.image, bool(config.slurm.gpus_per_node))
    if config.image.registry_block:
        start_prefect(config.store.root)()
    store: Path = config.store.root.expanduser().resolve()
    if only_wheelhouse:
        return str(fill_wheelhouse(config.image, store, say))
    image, record = trainer_image(config.image, store, load_login(config.image.registry_block), say)
    say(
        f"{image.size_bytes / 1e9:.2f} GB, commit {(image.commit or 'unknown')[:12]}{' (dirty)' if image.dirty else ''}; "
        f"record and list of packages: {record}"
    )
    if file is not None:
        return str(write_cluster_image(file[0], image.image_id, file[1], say))
    return image.reference
