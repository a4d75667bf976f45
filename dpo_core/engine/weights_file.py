"""The trained weights: whole tensors in safetensors files, whose cut follows from the model alone.

So equal weights are equal files, whatever back end and number of ranks wrote them. Files are dealt out: a tensor is
gathered for the rank whose file it belongs to, which hashes and writes it while the next ones are gathered.
"""

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, zip_longest
from pathlib import Path

from torch import Tensor

from dpo_core.contract.checkpoint_files import RUN_MANIFEST, RUN_WEIGHTS, shard_of
from dpo_core.contract.errors import from_os_error
from dpo_core.contract.store import make_aside, put_in_place, write_json
from dpo_core.engine.distributed import by_every_rank, from_main
from dpo_core.engine.engine import Engine
from dpo_core.engine.stored_tensor import StoredTensor
from dpo_core.engine.tensor_file import HeaderEntry, TensorFile, in_file_order

FILE_BYTES = 1 << 30
# A larger tensor is written before the next is gathered: one in memory at a time.
WRITTEN_BEHIND_BYTES = 1 << 27


def save_weights(folder: Path, engine: Engine) -> dict[str, str]:
    """Write the policy's tensors and a manifest as ``folder``, atomically, by all ranks. -> sha256 per file of tensors"""
    accelerator = engine.accelerator
    rank, ranks = accelerator.process_index, accelerator.num_processes
    tensors = engine.model_tensors()
    files = cut_into_files(
        {name: HeaderEntry(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    )
    names = [shard_of(RUN_WEIGHTS, number, len(files)) for number in range(len(files))]
    aside = from_main(accelerator, lambda: make_aside(folder))
    hashes: dict[str, str] = {}
    try:
        for first in range(0, len(files), ranks):
            wave, mine = files[first : first + ranks], first + rank
            if rank < len(wave):
                with (
                    TensorFile(aside / names[mine], wave[rank], {"format": "pt"}) as out,
                    _Behind(out) as writer,
                ):
                    _gather(tensors, wave, rank, writer)
                    hashes[names[mine]] = writer.finish()
            else:
                _gather(tensors, wave, rank, None)
        written = chain.from_iterable(of.items() for of in by_every_rank(accelerator, lambda *_: hashes))
        hashes = dict(sorted(written))
        if accelerator.is_main_process:
            write_json(aside / RUN_MANIFEST, hashes)
            put_in_place(aside, folder)
    except OSError as error:
        raise from_os_error(error, f"writing {folder.name}") from error
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
    return hashes


def cut_into_files(entries: Mapping[str, HeaderEntry]) -> list[dict[str, HeaderEntry]]:
    """Cut tensors in the file's order, a new file where one would become longer than ``FILE_BYTES``."""
    files: list[dict[str, HeaderEntry]] = [{}]
    size = 0
    for name in in_file_order(entries):
        size += entries[name].num_bytes
        if files[-1] and size > FILE_BYTES:
            files.append({})
            size = entries[name].num_bytes
        files[-1][name] = entries[name]
    return files


class _Behind:
    """Writes tensors in a thread of its own, the one before last being done."""

    def __init__(self, out: TensorFile) -> None:
        self._out, self._thread = out, ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> "_Behind":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def add(self, values: Tensor) -> None:
        self._wait()
        self._last = self._thread.submit(self._out.add, values)
        if values.nbytes > WRITTEN_BEHIND_BYTES:
            self._wait()

    def finish(self) -> str:
        """-> sha256"""
        self._wait()
        return self._out.finish()

    def _wait(self) -> None:
        if self._last:
            self._last.result()


def _gather(
    tensors: Mapping[str, StoredTensor],
    wave: Sequence[Mapping[str, HeaderEntry]],
    rank: int,
    writer: _Behind | None,
) -> None:
    """Gather the first tensor of each file, then the second ones and so on, by all ranks; ``writer`` takes this rank's."""
    turns = chain.from_iterable(zip_longest(*wave))
    for turn, name in enumerate(turns):
        if name is not None:
            values = tensors[name].gather()
            if writer and turn % len(wave) == rank:
                writer.add(values.cpu())
