"""A snapshot keeps the values of its moment, however slow its writer is, and an update waits no longer than it must."""

import json
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dpo_core.contract.errors import StoreError
from dpo_core.engine import snapshot as module
from dpo_core.engine.snapshot import Snapshot, hold
from dpo_core.engine.stored_tensor import StoredTensor, whole
from dpo_core.engine.tensor_file import TensorFile
from dpo_core.model import tensor_slices
from dpo_core.model.tensor_slices import PARTS, TensorSlices, open_slices


class GatedFile(TensorFile):
    """Writes a chunk whenever it is let through the gate."""

    def __init__(self, path, taken: Snapshot) -> None:
        super().__init__(path, taken.entries, taken.metadata)
        self.gate, self.started = threading.Semaphore(0), threading.Semaphore(0)

    def add(self, values) -> None:
        self.started.release()
        self.gate.acquire()
        super().add(values)


def writing(file: TensorFile, taken: Snapshot) -> threading.Thread:
    def write() -> None:
        with file:
            taken.write_to(file)
            file.finish()

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("written", [0, 1, 3])
def test_an_update_after_hold_does_not_reach_the_file(tmp_path, monkeypatch, written):
    monkeypatch.setattr(module, "CHUNK_BYTES", 16)
    values = torch.arange(16.0)  # four chunks
    expected = values.clone()
    taken = Snapshot({"a": whole(values)})
    file = GatedFile(tmp_path / "file", taken)
    thread = writing(file, taken)
    for _ in range(written):
        file.gate.release()
    for _ in range(written + 1):
        file.started.acquire()
    holding = threading.Thread(target=hold, args=([taken],))
    holding.start()
    holding.join(0.1)  # time to copy what the writer has not begun
    while (
        holding.is_alive()
    ):  # it waits for the chunk at hand, which may be the next one by the time it looks
        file.gate.release()
        holding.join(0.05)
    values.zero_()
    for _ in range(4):
        file.gate.release()
    thread.join()
    assert torch.equal(load_file(tmp_path / "file")["a"], expected)


def test_without_memory_for_copies_an_update_waits_for_the_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 16)
    monkeypatch.setattr(module, "free_bytes", lambda: 0)
    values = torch.arange(8.0)
    expected = values.clone()
    taken = Snapshot({"a": whole(values)})
    file = GatedFile(tmp_path / "file", taken)
    thread = writing(file, taken)

    def update() -> None:
        hold([taken])
        values.zero_()

    updating = threading.Thread(target=update)
    updating.start()
    updating.join(0.2)
    assert updating.is_alive()
    for _ in range(2):
        file.gate.release()
    updating.join(10)
    thread.join(10)
    assert torch.equal(load_file(tmp_path / "file")["a"], expected)
    assert not values.any()


def test_copies_of_weights_and_moments_together_take_half_of_the_free_memory(tmp_path, monkeypatch):
    """Two snapshots of 64 bytes, and 128 free, of which a copy takes its part: the first one's writer is waited for."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 16)
    weights, moments = torch.ones(16), torch.ones(16)
    snapshots = [Snapshot({"a": whole(values)}) for values in (weights, moments)]
    chunks = [chunk for snapshot in snapshots for chunk in snapshot.chunks]
    own = [chunk._values.untyped_storage().data_ptr() for chunk in chunks]

    def copied() -> list[bool]:
        held = zip(chunks, own, strict=True)
        return [
            chunk._values is not None and chunk._values.untyped_storage().data_ptr() != at
            for chunk, at in held
        ]

    monkeypatch.setattr(module, "free_bytes", lambda: 128 - 16 * sum(copied()))
    holding = threading.Thread(target=hold, args=(snapshots,))
    holding.start()
    holding.join(0.2)
    assert holding.is_alive()
    assert copied() == 4 * [False] + 4 * [True]  # what is written last
    for number, snapshot in enumerate(snapshots):
        with TensorFile(tmp_path / f"{number}", snapshot.entries, snapshot.metadata) as file:
            snapshot.write_to(file)
            file.finish()
    holding.join(10)
    assert not holding.is_alive()


def test_a_writer_that_has_failed_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda: 0)
    taken = Snapshot({"a": whole(torch.ones(4))})
    taken.end()
    hold([taken])


@given(data=st.data())
def test_what_any_number_of_ranks_wrote_is_read_by_any_other_in_ranges(tmp_path_factory, data):
    """Ranges as ZeRO cuts them, rows as FSDP2 does, and whole copies dealt out, all in one set of files."""
    folder, ranks = tmp_path_factory.mktemp("parts"), data.draw(st.integers(1, 5))
    shape = tuple(data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3)))
    tensor = torch.arange(float(torch.Size(shape).numel())).view(shape)
    cuts = sorted(data.draw(st.lists(st.integers(0, tensor.numel()), min_size=ranks - 1, max_size=ranks - 1)))
    bounds = [0, *cuts, tensor.numel()]
    paths = []
    for rank in range(ranks):
        held = tensor.view(-1)[bounds[rank] : bounds[rank + 1]]
        stored = {
            "cut": StoredTensor(shape, tensor.dtype, held, tensor.clone, bounds[rank]),
            "dealt": whole(tensor, rank, ranks),
            "scalar": whole(torch.tensor(7.0), rank, ranks),
        }
        taken, path = Snapshot(stored), folder / f"{rank}.safetensors"
        with TensorFile(path, taken.entries, taken.metadata) as file:
            taken.write_to(file)
            file.finish()
        paths.append(path)
    first = data.draw(st.integers(0, tensor.numel()))
    last = data.draw(st.integers(first, tensor.numel()))
    with open_slices(paths, ["cut", "dealt", "scalar"]) as slices:
        for name in ("cut", "dealt"):
            assert slices.tensors[name].shape == shape
            assert torch.equal(slices.read(name, first, last), tensor.view(-1)[first:last])
        assert float(slices.read("scalar")) == 7.0


@given(data=st.data())
def test_columns_that_ranks_wrote_are_read_by_any_other_in_ranges_and_columns(tmp_path_factory, data):
    """A matrix as tensor parallelism cuts it: its columns between neighbours, their rows by FSDP2, rows between copies."""
    folder = tmp_path_factory.mktemp("parts")
    tensor_ranks, data_ranks, copies = (data.draw(st.integers(low, 3)) for low in (2, 1, 1))
    height, width = data.draw(st.integers(1, 7)), tensor_ranks * data.draw(st.integers(1, 3))
    matrix, each = torch.arange(float(height * width)).view(height, width), width // tensor_ranks
    at_most, paths = -(-height // data_ranks), []
    for rank in range(tensor_ranks * data_ranks * copies):
        of_all, column = divmod(rank, tensor_ranks)
        copy, row = divmod(of_all, data_ranks)
        rows = slice(min(row * at_most, height), (row + 1) * at_most)
        columns = (column * each, (column + 1) * each)
        held = torch.zeros_like(matrix[rows, slice(*columns)])
        stored = StoredTensor(
            (height, width),
            matrix.dtype,
            held,
            matrix.clone,
            rows.start * width + columns[0],
            copy,
            copies,
            columns,
        )
        stored.take(matrix)
        assert torch.equal(held, matrix[rows, slice(*columns)])
        taken = Snapshot({"matrix": stored})
        if not taken.entries:
            continue
        paths.append(folder / f"{rank}.safetensors")
        with TensorFile(paths[-1], taken.entries, taken.metadata) as file:
            taken.write_to(file)
            file.finish()
    first = data.draw(st.integers(0, matrix.numel()))
    last = data.draw(st.integers(first, matrix.numel()))
    begin, end = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    row = data.draw(st.integers(0, height))
    part = torch.zeros(height - row, end - begin)
    with open_slices(paths, ["matrix"]) as slices:
        assert torch.equal(slices.read("matrix", first, last), matrix.view(-1)[first:last])
        slices.fill("matrix", part, row * width + begin, (begin, end))
        assert torch.equal(part, matrix[row:, begin:end])
    with pytest.raises(StoreError, match="a gap or an overlap"):
        TensorSlices(paths[:-1])  # the last columns of some rows are missing


@pytest.mark.parametrize(
    ("width", "num_files", "times"),
    [(4096, 1, 1), (512, 1, 4), (512, 4, 1)],
    ids=["a page of each row", "less of each row", "written as columns"],
)
def test_of_columns_no_more_is_read_than_they_and_held_than_some_rows(
    tmp_path, monkeypatch, width, num_files, times
):
    """One of four processes that compute together, and of four that share its part out: 16 rows of 64."""
    matrix, each = torch.arange(64.0 * width).view(64, width), width // num_files
    for number in range(num_files):
        columns = [number * each, (number + 1) * each]
        about = {PARTS: json.dumps({"matrix": [columns[0], [64, width], columns]})} if num_files > 1 else None
        some = matrix[:, slice(*columns)].contiguous()
        save_file({"matrix": some}, tmp_path / f"{number}.safetensors", metadata=about)
    reads, read = [], tensor_slices._read_exactly

    def counted(file, place, offset):
        reads.append(len(place))
        read(file, place, offset)

    monkeypatch.setattr(tensor_slices, "_read_exactly", counted)
    monkeypatch.setattr(tensor_slices, "MOST_READ_AT_ONCE", 4 * width)
    mine, part = (width // 4, width // 2), torch.zeros(16, width // 4)
    with open_slices(sorted(tmp_path.iterdir())) as slices:
        slices.fill("matrix", part, 32 * width + mine[0], mine)
    assert part.equal(matrix[32:48, slice(*mine)])
    assert sum(reads) == times * part.nbytes
    assert max(reads) <= 4 * width * part.itemsize
