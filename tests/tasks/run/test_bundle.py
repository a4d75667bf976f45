"""Results carried from one store to another as a tar file, and files that are no bundles."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_core.contract.data_jobs import MixJob
from dpo_core.contract.errors import StoreError
from dpo_core.contract.refs import ResolvedSource
from dpo_core.contract.results import RESULT_FILE
from tasks.launch.run_job import in_store, reusable_result
from tasks.run.bundle import read_bundle, write_bundle
from tests.tiny_models import make_tokenizer
from tests.tiny_stage import run_here

Change = Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes]]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> MixJob:
    """A mixture in a store."""
    folder = tmp_path_factory.mktemp("mixed")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    rows = [{"prompt": f"q {i}", "chosen": "yes", "rejected": "no"} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = MixJob(
        sources=(ResolvedSource(label="rows", path=folder / "rows.jsonl", content="c", amount="1.0"),),
        tokenizer_path=folder / "tokenizer",
        tokenizer_fingerprint="t",
        num_workers=1,
        held_out="1",
        cache_dir=folder / "store" / "cache",
    )
    job = in_store(job, folder / "store")
    run_here(job)
    return job


@pytest.fixture
def bundle(mixed: MixJob, tmp_path: Path) -> Path:
    path = tmp_path / "bundle.tar"
    assert write_bundle(path, store_of(mixed), [mixed.out_dir, store_of(mixed) / "train" / ("0" * 16)]) == 1
    return path


def store_of(job: MixJob) -> Path:
    return job.out_dir.parents[1]


def changed(bundle: Path, change: Change, *more: tuple[tarfile.TarInfo, bytes]) -> Path:
    """The bundle with each member changed, and ``more`` behind them."""
    path = bundle.with_name("changed.tar")
    with tarfile.open(bundle) as old, tarfile.open(path, "w") as new:
        members = [change(member, old.extractfile(member).read()) for member in old]
        for member, content in [*members, *more]:
            member.size = len(content) if member.isreg() else 0
            new.addfile(member, io.BytesIO(content))
    return path


def same(member: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member, content


def test_a_result_is_taken_into_another_store_once(mixed, bundle, tmp_path):
    store = tmp_path / "store"
    (line,) = read_bundle(bundle, store)
    there = in_store(mixed, store)
    assert line == f"mix is in {there.out_dir}"
    result = reusable_result(there)
    assert result is not None
    assert result.data.path == there.out_dir / "data"
    assert result.data.files == reusable_result(mixed).data.files
    assert read_bundle(bundle, store) == ["mix is in the store already"]
    assert [path.name for path in store.iterdir()] == ["mix"], "nothing is left beside"


def test_a_folder_at_work_is_left_alone(mixed, bundle, tmp_path):
    there = in_store(mixed, tmp_path / "store").out_dir
    there.mkdir(parents=True)
    (there / "half").write_text("made")
    with pytest.raises(StoreError, match="a run may be at work on it"):
        read_bundle(bundle, tmp_path / "store")
    assert (there / "half").read_text() == "made"


def named(name: str) -> Change:
    def change(member: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if member.name.endswith("rows.arrow"):
            member.name = name
        return member, content

    return change


def other_rows(member: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member, content[:-1] + b"\0" if member.name.endswith("train/rows.arrow") else content


def other_place(member: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    step, _, rest = member.name.split("/", 2)
    member.name = f"{step}/{'0' * 16}/{rest}"
    return member, content


def other_paths(member: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    if member.name.endswith(RESULT_FILE):
        values = json.loads(content)
        values["data"]["path"] = "/etc"
        content = json.dumps(values).encode()
    return member, content


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (named("../../escaped"), "escaped"),
        (named("/etc/passwd"), "passwd"),
        (named("train/0123456789abcdef/weights"), "train/"),
        (named("mix/0123456789abcdef/../../x"), "mix/"),
        (named("mix/0123456789abcdef/.orchestrator/x"), "orchestrator"),
        (other_rows, "rows.arrow"),
        (other_place, "not the result of the job in it"),
        (other_paths, "/etc"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_in_place(bundle, tmp_path, change, why):
    with pytest.raises(StoreError, match=r"is not used as a bundle") as error:
        read_bundle(changed(bundle, change), tmp_path / "store")
    assert why in error.value.problem
    assert list((tmp_path / "store").iterdir()) == []
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_bundle_that_is_cut_off_is_refused(bundle, tmp_path, share):
    content = bundle.read_bytes()
    with tarfile.open(bundle) as tar:
        ends = [member.offset_data + -(-member.size // 512) * 512 for member in tar]
    for length in (int(ends[-1] * share), ends[int(len(ends) * share)], ends[-1]):  # also just behind a file
        bundle.write_bytes(content[:length])
        with pytest.raises(StoreError, match="is not used as a bundle"):
            read_bundle(bundle, tmp_path / "store")
        assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
def test_nothing_but_plain_files_is_taken(mixed, bundle, tmp_path, kind):
    member = tarfile.TarInfo(f"mix/{mixed.out_dir.name}/data/more")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(StoreError, match=r"is not used as a bundle"):
        read_bundle(changed(bundle, same, (member, b"")), tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("more", ["data/train/rows.arrow", "job.json", "job.json/below"])
def test_a_name_that_stands_twice_is_refused(mixed, bundle, tmp_path, more):
    """A folder's and a file's name, too: which of the two is meant nobody can say."""
    member = tarfile.TarInfo(f"mix/{mixed.out_dir.name}/{more}")
    with pytest.raises(StoreError, match=r"is not used as a bundle: it holds '.*' twice"):
        read_bundle(changed(bundle, same, (member, b"{}")), tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "0,1,x"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99"},
        {"size": "9" * 30},
    ],
    ids=str,
)
def test_headers_that_contradict_themselves_are_refused(mixed, bundle, tmp_path, headers):
    member = tarfile.TarInfo(f"mix/{mixed.out_dir.name}/data/more")
    member.pax_headers = headers
    with pytest.raises(StoreError, match=r"is not used as a bundle"):
        read_bundle(changed(bundle, same, (member, b"{}")), tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_another_file_is_no_bundle(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"is not used as a bundle"):
        read_bundle(path, tmp_path / "store")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"gone\.tar"):
        read_bundle(tmp_path / "gone.tar", tmp_path / "store")
