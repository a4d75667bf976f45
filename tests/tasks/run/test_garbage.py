"""The collection of garbage: whatever the runs and links are, nothing that a kept run leads to is ever removed."""

import fcntl
import json
import os
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.store import write_json
from tasks.launch.own_folder import make_own_folder, own_folder
from tasks.run.folder import RunRecord
from tasks.run.garbage import SECONDS_PER_DAY, collect, in_words
from tasks.run.store_root import MARKER, prepare_store

DAYS = 10.0
STEPS = ("mix", "reference", "train", "export", "checkpoints")
NOBODY = 2**22 + 1  # above the largest process id


class Store:
    """A store as files: entries that name others in their job.json, and runs that name entries."""

    def __init__(self, root: Path) -> None:
        self.root = root
        prepare_store(root)

    def entry(self, number: int, names: list[Path], age_days: float) -> Path:
        path = self.root / STEPS[number % len(STEPS)] / f"{number:016x}"
        path.mkdir(parents=True)
        (path / "job.json").write_text(
            json.dumps({"data": {"path": [str(other / "rows.bin") for other in names]}})
        )
        (path / "weights").write_bytes(b"x" * 1000)
        self.age(path, age_days)
        return path

    def age(self, path: Path, days: float) -> None:
        when = time.time() - days * SECONDS_PER_DAY
        for file in (*path.rglob("*"), path):
            os.utime(file, (when, when))

    def run(
        self,
        number: int,
        outputs: list[Path],
        age_days: float,
        state: str,
        pid: int = NOBODY,
        name: str = "a",
    ) -> None:
        started = datetime.now(UTC) - timedelta(days=age_days)
        record = RunRecord(
            name=name,
            state=state,
            started=started,
            pid=pid,
            outputs={f"step{n}": str(path) for n, path in enumerate(outputs)},
        )
        write_json(self.root / "runs" / f"{started:%Y%m%d-%H%M%S}-{number}" / "run.json", record)

    def entries(self) -> set[Path]:
        return {path for step in STEPS for path in (self.root / step).glob("*") if path.is_dir()}


# Not on the edge itself: time goes on while the test runs. Runs begin on days of their own, as their order counts.
age_days = st.floats(0, DAYS - 0.1) | st.floats(DAYS + 0.1, 100)
run_days = st.integers(0, int(DAYS) - 1) | st.integers(int(DAYS) + 1, 100)
run_specs = st.lists(
    st.tuples(
        st.sets(st.integers(0, 9), max_size=3),
        run_days,
        st.booleans(),
        st.sampled_from(["completed", "failed", "running", "cancelled"]),
    ),
    max_size=5,
    unique_by=lambda run: run[1],
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ages=st.lists(age_days, min_size=10, max_size=10),
    runs=run_specs,
    keep=st.integers(0, 2),
    links=st.lists(st.sets(st.integers(0, 9), max_size=3), min_size=10, max_size=10),
)
def test_what_a_kept_run_leads_to_stays_and_old_orphans_go(tmp_path_factory, ages, runs, keep, links):
    store = Store(tmp_path_factory.mktemp("store").resolve())
    entries: list[Path] = []
    for number in range(10):  # an entry names only earlier ones, as a step's inputs are there before it
        entries.append(
            store.entry(number, [entries[other] for other in links[number] if other < number], ages[number])
        )
    for number, (outputs, age, alive, state) in enumerate(runs):
        store.run(number, [entries[n] for n in outputs], age, state, os.getpid() if alive else NOBODY)

    newest = sorted((n for n, run in enumerate(runs) if run[3] == "completed"), key=lambda n: runs[n][1])[
        :keep
    ]
    roots = {
        number
        for n, (outputs, age, alive, state) in enumerate(runs)
        for number in outputs
        if age <= DAYS or (state == "running" and alive) or n in newest
    }
    while more := {other for n in roots for other in links[n] if other < n} - roots:
        roots |= more
    expected = {entries[n] for n in range(10) if n in roots or ages[n] <= DAYS}

    found = collect(store.root, DAYS, keep, dry_run=True)
    assert store.entries() == set(entries)
    assert {entry.path for entry in found.garbage} == set(entries) - expected
    assert collect(store.root, DAYS, keep, dry_run=False).removed == tuple(
        entry.path for entry in found.garbage
    )
    assert store.entries() == expected


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path.resolve())


# Of the step; of the run that waits for it, and of one of an earlier version.
@pytest.mark.parametrize("place", [".lock", "../.orchestrator/{0:016x}/.lock", ".claim/.lock"])
def test_a_step_at_work_keeps_its_folder_and_its_inputs(store, place):
    data = store.entry(0, [], 50)
    train = store.entry(2, [data], 50)
    place = place.format(2)
    (train / place).parent.mkdir(parents=True, exist_ok=True)
    (train / place).touch()
    store.age(train, 50)
    with (train / place).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert collect(store.root, DAYS, 1, dry_run=False).removed == ()
    assert collect(store.root, DAYS, 1, dry_run=False).removed == (data, train)


def test_what_the_orchestrator_kept_of_an_entry_goes_with_it_and_of_no_other(store):
    gone, stays = store.entry(0, [], 50), store.entry(5, [], 1)
    for entry in (gone, stays):
        (make_own_folder(entry) / "log.txt").write_text("x" * 77)
    found = collect(store.root, DAYS, 0, dry_run=False)
    assert found.removed == (gone,)
    assert found.num_bytes == len(json.dumps({"data": {"path": []}})) + 1000 + 77
    assert [path.name for path in gone.parent.iterdir()] == [".orchestrator", stays.name]
    assert [path.name for path in own_folder(stays).parent.iterdir()] == [stays.name]


TRAPS = {
    "a lock that is a link": lambda entry, host: (entry / ".lock").symlink_to(host / "file"),
    "a lock that is a hard link": lambda entry, host: os.link(host / "file", entry / ".lock"),
    "a lock that is a pipe": lambda entry, host: os.mkfifo(entry / ".lock"),
    "a claim that is a link": lambda entry, host: (entry / ".claim").symlink_to(host),
    "links inside": lambda entry, host: (entry / "data").symlink_to(host),
    "a result that is a pipe": lambda entry, host: os.mkfifo(entry / "result.json"),
    "a result that is a link": lambda entry, host: (entry / "result.json").symlink_to("/dev/zero"),
    "a result that is nested deep": lambda entry, host: (entry / "result.json").write_text("[" * 100_000),
    "a result that is huge": lambda entry, host: os.truncate(
        os.open(entry / "result.json", os.O_CREAT | os.O_WRONLY), 1 << 40
    ),
    "folders that are nested deep": lambda entry, host: nest(entry, 1500),
}


def nest(folder: Path, depth: int) -> None:
    """Deeper than Python calls itself, and than a path may be long."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("sub", dir_fd=here)
        inner = os.open("sub", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.timeout(30)
def test_what_a_step_left_in_an_entry_stops_no_collection_and_leads_nowhere(store, tmp_path_factory, trap):
    host, other = tmp_path_factory.mktemp("host"), store.entry(1, [], 50)
    for name in ("file", ".lock"):
        (host / name).write_text("a person's own")
    entry = store.entry(0, [], 50)
    TRAPS[trap](entry, host)
    if "result" in trap:
        store.run(0, [entry], 1, "completed")  # a collection reads what a run leads to
    for path in entry.iterdir() if trap != "folders that are nested deep" else ():
        os.utime(path, (0, 0), follow_symlinks=False)
    os.utime(entry, (0, 0))
    removed = collect(store.root, DAYS, 0, dry_run=False).removed
    assert other in removed
    assert [path.name for path in sorted(host.iterdir())] == [".lock", "file"]
    assert {path.read_text() for path in host.iterdir()} == {"a person's own"}
    subprocess.run(["rm", "-rf", store.root], check=True)


def test_products_records_and_caches_are_never_touched(store):
    kept = [
        store.root / name / "0123"
        for name in ("published", "handoff", "runs", "cache", "reference-rows", "prefect", "serve")
    ] + [store.root / "checkpoints" / "resolved"]
    for path in kept:
        path.mkdir(parents=True)
        (path / "file").write_text("x")
        store.age(path, 1000)
    assert collect(store.root, 1, 0, dry_run=False).garbage == ()
    assert all((path / "file").is_file() for path in kept)


def test_it_says_what_it_frees_and_counts_links_as_nothing(store):
    old = store.entry(1, [], 50)
    os.link(old / "weights", store.root / "elsewhere")
    found = collect(store.root, DAYS, 1, dry_run=False)
    assert found.num_bytes == len(json.dumps({"data": {"path": []}}))
    assert "1 entries removed" in in_words(found, dry_run=False)
    assert (store.root / "elsewhere").stat().st_size == 1000


@pytest.mark.parametrize(
    "name", ["runs/events.out", "checkpoints/my-sft-7b/model.safetensors", "train/0123456789abcdef/x"]
)
def test_a_folder_that_is_no_store_is_refused_and_never_becomes_one(tmp_path, name):
    """Somebody's own folder, in which a run was made: not even what has a name of ours is touched."""
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("somebody's")
    prepare_store(tmp_path)
    with pytest.raises(ConfigError, match="is not marked as a store"):
        collect(tmp_path, 0, 0, dry_run=False)
    assert (tmp_path / name).read_text() == "somebody's"


def test_a_marker_that_is_a_link_marks_nothing(tmp_path):
    (tmp_path / "elsewhere").write_text("{}")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / MARKER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is not marked as a store"):
        collect(tmp_path / "store", 0)


def test_a_store_of_an_earlier_version_is_known_by_its_runs(store):
    store.run(1, [], 50, "completed")
    store.entry(1, [], 50)
    (store.root / MARKER).unlink()
    with pytest.raises(ConfigError, match="is not marked as a store"):
        collect(store.root, DAYS)
    prepare_store(store.root)
    assert len(collect(store.root, DAYS).garbage) == 1


@pytest.mark.parametrize(
    "name", ["my-sft-7b", "images", "0123456789ABCDEF", "0123456789abcde", "0123456789abcdef0"]
)
def test_what_has_another_name_is_not_ours(store, name):
    path = store.root / "checkpoints" / name
    path.mkdir(parents=True)
    (path / "weights").write_text("somebody's")
    store.age(path, 1000)
    assert collect(store.root, 1, 0, dry_run=False).garbage == ()
    assert (path / "weights").is_file()


def test_nothing_is_removed_through_a_link(store, tmp_path_factory):
    """Neither an entry nor a step's folder that is one, nor what a link inside an entry points to."""
    other = tmp_path_factory.mktemp("other")
    for name in ("a", "train/0123456789abcdef", "b"):
        (other / name).mkdir(parents=True)
        (other / name / "file").write_text("somebody's")
    entry = store.entry(2, [], 50)
    (entry / "link").symlink_to(other / "b")
    (store.root / "train" / ("0" * 15 + "a")).symlink_to(other / "a")
    (store.root / "export").symlink_to(other / "train")
    for path in other.rglob("*"):
        os.utime(path, (0, 0))
    for path in (entry, entry / "link"):
        os.utime(path, (0, 0), follow_symlinks=False)
    assert collect(store.root, DAYS, 0, dry_run=False).removed == (entry,)
    assert len(list(other.rglob("file"))) == 3


@pytest.mark.parametrize("linked", ["the orchestrator's folder", "its folder of the entry"])
def test_nothing_is_removed_where_a_link_stands_in_the_way_to_it(store, tmp_path_factory, linked):
    entry, elsewhere = store.entry(0, [], 90), tmp_path_factory.mktemp("elsewhere")
    own, theirs = own_folder(entry), elsewhere / entry.name
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    (theirs / ".lock").write_text("theirs")
    if linked == "the orchestrator's folder":
        own.parent.symlink_to(elsewhere)
    else:
        own.parent.mkdir()
        own.symlink_to(theirs)
    assert collect(store.root, DAYS, dry_run=False).removed == ()
    assert entry.is_dir()
    assert {path.name: path.read_text() for path in theirs.iterdir()} == {
        "thesis.tex": "years of work",
        ".lock": "theirs",
    }
