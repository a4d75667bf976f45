"""How much a Hub lists of what is about to be downloaded, held against a bound and the disk before a byte is fetched."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub.hf_api import ModelInfo

from dpo_core.contract.errors import CheckpointError, DiskFull

SPARE_BYTES = 1 << 30  # for what else is written to the disk meanwhile


def listed_sizes(info: ModelInfo) -> dict[str, int]:
    """File name -> bytes, of an info that was asked for with ``files_metadata``; a file without a size is left out."""
    return {file.rfilename: file.size for file in info.siblings or [] if file.size is not None}


def check_download(what: str, names: Iterable[str], sizes: Mapping[str, int], max_gib: float, setting: str,
                   folder: Path) -> None:
    """Raise ``CheckpointError`` if the files ``names`` of ``what`` are larger than ``max_gib``, of which ``setting`` is the
    name, or one has no size; ``DiskFull`` if the disk of ``folder`` has no room for them."""
    names = set(names)
    if unknown := sorted(names - set(sizes)):
        raise CheckpointError(f"The Hub lists no size of {unknown[0]} in {what}, so it is not fetched. Ask for another "
                              "revision.")
    total = sum(sizes[name] for name in names)
    if total > max_gib * (1 << 30):
        largest = max(names, key=lambda name: sizes[name])
        raise CheckpointError(f"{what} is {_gib(total)} in {len(names)} files (the largest: {largest}, "
                              f"{_gib(sizes[largest])}), and at most {max_gib:g} GiB are downloaded. If that is meant, raise "
                              f"{setting}.")
    free = shutil.disk_usage(_existing(folder)).free
    if total + SPARE_BYTES > free:
        raise DiskFull(f"{what} is {_gib(total)}, and the disk of {folder} has {_gib(free)} left, of which "
                       f"{_gib(SPARE_BYTES)} are kept free. Free some space or use another disk.")


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.1f} GiB"
