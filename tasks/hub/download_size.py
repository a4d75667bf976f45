"""How much the Hub lists of what is about to be downloaded, held against a bound and the disk before a byte is fetched."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.hf_api import ModelInfo

from dpo_core.contract.errors import CheckpointError, DiskFull

SPARE_BYTES = 1 << 30  # for what else is written to the disk meanwhile
Sizes = Mapping[str, int | None]  # file name -> bytes; None: the Hub does not say


def listed_sizes(info: ModelInfo) -> dict[str, int | None]:
    """Return what an info that was asked for with ``files_metadata`` says of its files."""
    return {file.rfilename: file.size for file in info.siblings or []}


def check_download(what: str, sizes: Sizes, folder: Path, max_gib: float | None, setting: str = "") -> None:
    """Look at files of ``what`` that are about to be written to ``folder``; ``setting`` is what sets ``max_gib``.

    Raises ``CheckpointError`` if they are larger together, or one has no size; ``DiskFull`` if the disk has no room.
    """
    known = {name: size for name, size in sizes.items() if size is not None}
    if unknown := sorted(set(sizes) - set(known)):
        raise CheckpointError(
            f"The Hub lists no size of {unknown[0]} in {what}, so nothing is fetched. Give a directory "
            "that holds the checkpoint instead."
        )
    total = sum(known.values())
    if max_gib is not None and total > max_gib * (1 << 30):
        largest = max(known, key=lambda name: known[name])
        raise CheckpointError(
            f"{what} has {_gib(total)} to download in {len(known)} files (the largest, {largest}: "
            f"{_gib(known[largest])}), expected at most {max_gib:g} GiB. If it is meant, raise {setting}."
        )
    free = shutil.disk_usage(
        next(place for place in (folder, *folder.absolute().parents) if place.exists())
    ).free
    if total + SPARE_BYTES > free:
        raise DiskFull(
            f"{what} has {_gib(total)} to download, and the disk of {folder} has {_gib(free)} left, of which "
            f"{_gib(SPARE_BYTES)} are kept free. Free some space, or use another disk."
        )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB"
