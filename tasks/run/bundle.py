"""Results of steps as one tar file, from one store to another that it shares no disk with.

A bundle comes from others: names are read as text and nothing but plain files is taken, each result is held to its own
hashes and to the place that its job's fingerprint gives it. What the rows say is not for a hash to judge: who makes the
bundle decides what is trained on, as who makes a data set does.
"""

import contextlib
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpo_core.contract.errors import PairlineError, StoreError, from_os_error
from dpo_core.contract.job import JOB_FILE
from dpo_core.contract.job_registry import read_job
from dpo_core.contract.results import RESULT_FILE, read_result
from dpo_core.contract.store import make_aside, put_in_place
from tasks.launch.result_check import check_result, in_this_store
from tasks.launch.run_job import in_store, reusable_result

BUNDLED = ("mix", "reference")  # steps whose results a run needs of another host
PLACE = re.compile(rf"({'|'.join(BUNDLED)})/[0-9a-f]{{16}}")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
MOST_FILES, MOST_PARTS = 100_000, 8


def write_bundle(path: Path, store_root: Path, folders: Sequence[Path]) -> int:
    """Write the results in the jobs' ``folders`` that a run needs as a tar file. -> how many

    Raises ``StoreError`` for a folder without a whole result, ``DiskFull``.
    """
    store_root = store_root.expanduser().resolve()
    places = {}
    for folder in folders:
        if PLACE.fullmatch(place := folder.relative_to(store_root).as_posix()):
            places[place] = folder
    try:
        with tarfile.open(path, "w") as tar:
            for place, folder in sorted(places.items()):
                job = read_job(folder / JOB_FILE)
                result = reusable_result(job)
                if result is None:
                    raise StoreError(f"{folder} holds no whole result.", "Run `pairline prepare` again.")
                named = {below / name for below, files in result.file_sets() for name in files}
                for file in sorted({folder / JOB_FILE, folder / RESULT_FILE, *named}):
                    tar.add(file, f"{place}/{file.relative_to(folder).as_posix()}", recursive=False)
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error
    return len(places)


def read_bundle(path: Path, store_root: Path) -> list[str]:
    """Take a bundle's results into a store. -> a sentence on each

    What the store has already stays. Raises ``StoreError`` for a file that is no bundle, and before anything is in place.
    """
    store_root = store_root.expanduser().resolve()
    store_root.mkdir(parents=True, exist_ok=True)
    with _unpacked(path, store_root) as aside:
        places = sorted(found for step in BUNDLED for found in aside.glob(f"{step}/*"))
        if not places:
            raise _not_a_bundle(path, "it holds no result")
        for folder in places:
            _check(path, folder)
        return [_take(folder, store_root) for folder in places]


@contextlib.contextmanager
def _unpacked(path: Path, store_root: Path) -> Iterator[Path]:
    aside = make_aside(store_root / "bundle")
    try:
        _unpack_all(path, aside)
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _unpack_all(path: Path, aside: Path) -> None:
    try:
        with tarfile.open(path, "r:") as tar:
            for number, member in enumerate(tar):
                if number >= MOST_FILES:
                    raise _not_a_bundle(path, f"it holds more than {MOST_FILES:,} files")
                _unpack(path, tar, member, aside)
            if tar.offset >= path.stat().st_size:  # the block of zeros is missing with which each ends
                raise _not_a_bundle(path, "it is cut off behind a file")
    except PairlineError:
        raise
    except (FileExistsError, NotADirectoryError) as error:
        raise _not_a_bundle(path, f"it holds {Path(error.filename).name[:200]!r} twice") from error
    except (
        tarfile.TarError,
        ValueError,
        EOFError,
    ) as error:  # headers that contradict themselves: ValueError
        raise _not_a_bundle(path, str(error)) from error
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error


def _unpack(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, aside: Path) -> None:
    parts = member.name.split("/")
    names_fit = len(parts) <= MOST_PARTS and all(NAME.fullmatch(part) and ".." not in part for part in parts)
    if not (names_fit and len(parts) > 2 and PLACE.fullmatch("/".join(parts[:2]))):
        raise _not_a_bundle(path, f"it holds {member.name[:200]!r}")
    if not member.isreg() or member.issparse():  # a sparse file of a few bytes may fill the disk
        raise _not_a_bundle(path, f"{member.name[:200]!r} is no plain file")
    content, target = tar.extractfile(member), aside.joinpath(*parts)
    assert content is not None  # of a plain file
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("xb") as out:
        shutil.copyfileobj(content, out, 1 << 20)


def _check(path: Path, folder: Path) -> None:
    try:
        job = read_job(folder / JOB_FILE).at(folder)
        place = in_store(job, folder.parents[1]).out_dir
        result = read_result(job)
        if place != folder or result is None:
            raise StoreError(
                f"{folder.parent.name}/{folder.name} is not the result of the job in it, as this version makes it."
            )
        check_result(in_this_store(result, folder), job)
    except PairlineError as error:
        raise _not_a_bundle(path, error.problem) from error


def _take(folder: Path, store_root: Path) -> str:
    job = in_store(read_job(folder / JOB_FILE).at(folder), store_root)
    if reusable_result(job) is not None:
        return f"{job.step} is in the store already"
    if job.out_dir.exists():
        raise StoreError(
            f"{job.out_dir} is there without a result: a run may be at work on it.",
            "Wait for it, or delete the folder.",
        )
    job.out_dir.parent.mkdir(parents=True, exist_ok=True)
    put_in_place(folder, job.out_dir)
    return f"{job.step} is in {job.out_dir}"


def _not_a_bundle(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is not used as a bundle: {why}.", "`pairline prepare --export` writes one.")
