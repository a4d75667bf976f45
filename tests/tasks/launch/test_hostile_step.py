"""What a step leaves and prints is data, whatever it is: nothing of the person's own is changed or shown, nobody waits for
ever, and what is read has a bound. The same attacks from real containers: tests/containers/launch/test_way_back.py.
"""

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path

import pytest

from dpo_core.contract.errors import PairlineError, StepCrashed, StoreError, TimedOut
from dpo_core.contract.job import LOG_FILE
from dpo_core.contract.progress import parse_line
from dpo_core.contract.regular_file import open_regular, read_regular
from dpo_core.contract.results import ERROR_FILE, read_error
from dpo_core.contract.store import exclusive, new_directory, remove_unfinished, sha256_file
from tasks.launch import step_log as step_log_module
from tasks.launch.context import Context
from tasks.launch.lines import LONGEST_LINE, LineSplitter
from tasks.launch.own_folder import EARLIER_CLAIM, EARLIER_LOG, FULL_LOG, claim, own_folder
from tasks.launch.run_job import reusable_result
from tests.programs.hostile_steps import HARD_LINK, TRAPS, Host, results_to_refuse
from tests.tasks.launch.test_run_job import Heard, Step

pytestmark = [pytest.mark.timeout(300), pytest.mark.integration]  # real processes


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host")


@pytest.mark.parametrize("trap", [*TRAPS, "hard links"])
def test_no_trap_in_a_steps_folder_reaches_what_is_the_persons_own(tmp_path, host, trap):
    step = Step(tmp_path, host.attack({**TRAPS, "hard links": HARD_LINK}[trap]))
    with pytest.raises(StepCrashed, match="exit code 3") as caught:
        step.run()
    assert caught.value.retryable
    with pytest.raises(PairlineError):
        step.run()
    assert host.is_untouched
    log = (own_folder(step.folder) / LOG_FILE).read_text()
    assert "a line of the step's" in log
    assert not (own_folder(step.folder) / LOG_FILE).is_symlink()


NAMES_OF_RESULTS = list(results_to_refuse("", Path("/a"), Path("/b"), ""))


@pytest.mark.parametrize("what", NAMES_OF_RESULTS)
def test_a_result_that_cannot_be_believed_is_refused_at_once_and_later(tmp_path, host, what):
    step = Step(tmp_path, "pass")
    code, refusal = results_to_refuse(
        step.job.fingerprint, step.folder, host.root, sha256_file(tmp_path / "expected")
    )[what]
    program = Path(step.launcher.python)
    program.write_text(program.read_text() + "\n" + "\n".join(line.strip() for line in code.splitlines()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StoreError, match=refusal) as caught:
        step.run()
    assert len(str(caught.value)) < 2_000
    assert "xxxx" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    with contextlib.suppress(StoreError):  # where it is no result at all
        assert reusable_result(step.job) is None
    assert host.is_untouched


@pytest.mark.parametrize(
    "leave",
    [
        "os.mkfifo(folder / 'error.json')",
        "(folder / 'error.json').write_text('[' * 100_000)",
        "os.truncate(os.open(folder / 'error.json', os.O_CREAT | os.O_WRONLY), 1 << 40)",
        "(folder / 'error.json').symlink_to('/dev/zero')",
    ],
)
def test_an_error_report_that_cannot_be_read_is_none(tmp_path, leave):
    with pytest.raises(StepCrashed, match="exit code 3"):
        Step(tmp_path, f"{leave}; sys.exit(3)").run()


def test_a_report_that_talks_too_much_is_cut(tmp_path):
    step = Step(
        tmp_path,
        """
        (folder / "error.json").write_text(json.dumps({"kind": "data", "message": "a" * 500_000, "step": "convert",
                                                       "job_fingerprint": fingerprint}))
        sys.exit(1)""",
    )
    with pytest.raises(PairlineError) as caught:
        step.run()
    assert len(str(caught.value)) <= 10_000
    assert read_error(step.job).message == "a" * 500_000


def test_a_line_without_end_is_cut_wherever_it_goes(tmp_path):
    step = Step(
        tmp_path,
        """
        for _ in range(400):
            sys.stdout.write('{"pairline": "progress", "step": "' + "a" * 100_000)
        print()
        print("next")
        succeed()""",
    )
    heard, events = Heard(), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step.run(Context(lines=heard, on_progress=events.append))
    assert (own_folder(step.folder) / LOG_FILE).stat().st_size < 2 * LONGEST_LINE
    assert events == []
    cut, following = heard.lines
    assert len(cut) < 3_000
    assert following == "next"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; it printed 40 MB


def test_a_crash_of_long_lines_is_told_in_short(tmp_path):
    with pytest.raises(StepCrashed) as caught:
        Step(tmp_path, "[print('a' * 60_000) for _ in range(60)]; sys.exit(1)").run()
    assert len(str(caught.value)) < 120_000


def test_a_step_that_prints_without_end_is_stopped_in_time_and_its_log_has_a_bound(tmp_path, monkeypatch):
    largest = 1 << 20
    monkeypatch.setattr(step_log_module, "LARGEST_LOG_BYTES", largest)
    step = Step(
        tmp_path,
        """
        while True:
            print("all work and no play " * 4)""",
        timeout_seconds=5,
    )
    started = time.monotonic()
    with pytest.raises(TimedOut):
        step.run()
    assert time.monotonic() - started < 200
    logs = sorted(path for path in own_folder(step.folder).iterdir() if path.name.startswith("log."))
    assert [path.name for path in logs] == [FULL_LOG, LOG_FILE]
    assert all(path.stat().st_size < 1.2 * largest for path in logs)
    assert "Goes on from log.1.txt" in logs[1].read_text()


@pytest.mark.parametrize(
    "line",
    [
        '{"pairline": "progress", "step": "a", "done": 1e400, "total": 2, "unit": "a"}',
        '{"pairline": "progress", "step": "a", "done": ' + "9" * 4000 + ', "total": 2, "unit": "a"}',
        '{"pairline": "progress", "step": "a", "done": -1, "total": 2, "unit": "a"}',
        '{"pairline": "progress", "step": "' + "a" * 5000 + '", "done": 1, "total": 2, "unit": "a"}',
        '{"pairline": ' + "[" * 60_000,
        '{"pairline": "progress", "step": "a", "done": 1, "total": 2, "unit": "a", "metrics": {"loss": [[1]]}}',
    ],
)
def test_progress_that_is_none_is_a_line_of_the_log(line):
    assert parse_line(line) is None


def test_lines_are_what_they_were_however_they_come():
    text = "one\r\ntwo\rthree\n\nf\u00fcnf \u2713 \U0001f600\nlast"
    for size in (1, 2, 3, 7, 100):
        for any_end in (True, False):
            splitter, content = LineSplitter(any_end), text.encode()
            lines = [
                line
                for start in range(0, len(content), size)
                for line in splitter.feed(content[start : start + size])
            ]
            expected = text.replace("\r\n", "\n").replace("\r", "\n") if any_end else text
            assert lines + splitter.rest() == expected.split("\n")
    assert LineSplitter().rest() == []
    splitter = LineSplitter()
    (cut,) = splitter.feed(b"a" * (LONGEST_LINE + 5) + b"\n")
    assert cut == "a" * LONGEST_LINE + " [5 characters more]"
    assert splitter.feed(b"whole\n") == ["whole"]


@pytest.mark.parametrize(
    "flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_APPEND | os.O_CREAT]
)
def test_only_a_plain_file_is_opened_and_nothing_is_waited_for(tmp_path, host, flags):
    place = tmp_path / "place"
    for make in (
        lambda: place.symlink_to(host.root / "file"),
        lambda: place.symlink_to(tmp_path / "new"),
        place.mkdir,
        lambda: os.mkfifo(place),
        lambda: place.symlink_to("/dev/zero"),
    ):
        make()
        with pytest.raises(StoreError, match=f"{place} is"):
            open_regular(place, flags)
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
    assert host.is_untouched
    assert not (tmp_path / "new").exists()


def test_a_file_with_another_name_is_read_and_not_written(tmp_path, host):
    place = tmp_path / ".lock"
    os.link(host.root / "file", place)
    assert read_regular(place, 100) == b"a person's own"
    with pytest.raises(StoreError, match="another name"), exclusive(tmp_path):
        pytest.fail("never held")
    with pytest.raises(StoreError, match="another name"):
        open_regular(place, os.O_WRONLY | os.O_TRUNC)
    assert host.is_untouched


def test_a_shared_folder_may_be_a_link_and_its_lock_may_not(tmp_path, host):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with exclusive(tmp_path / "checkpoints"):
        assert "process" in (tmp_path / "elsewhere" / ".lock").read_text()
    (tmp_path / "elsewhere" / ".lock").unlink()
    (tmp_path / "elsewhere" / ".lock").symlink_to(host.root / "file")
    with pytest.raises(StoreError, match="is a link"), exclusive(tmp_path / "checkpoints"):
        pytest.fail("never held")
    assert host.is_untouched


def test_what_an_earlier_version_left_goes_on(tmp_path):
    """Its log lies in the job's folder; its claim, while it lives, is respected."""
    step = Step(tmp_path, "print('now'); succeed()")
    (step.folder / LOG_FILE).write_text("then\n")
    with (
        exclusive(step.folder / EARLIER_CLAIM),
        pytest.raises(PairlineError, match="in use by process"),
        claim(step.folder),
    ):
        pytest.fail("both at once")
    step.run()
    assert (step.folder / EARLIER_LOG).read_text() == "then\n"
    assert "now" in (step.folder / LOG_FILE).read_text()
    assert (step.folder / LOG_FILE).readlink() == Path("..", ".orchestrator", step.folder.name, LOG_FILE)


def test_a_folder_that_somebody_deleted_begins_its_log_anew(tmp_path):
    step = Step(tmp_path, "print('now'); succeed()")
    step.run()
    for path in sorted(step.folder.iterdir()):
        path.rename(tmp_path / path.name)
    step.folder.rmdir()
    with pytest.raises(PairlineError):  # the test's program finds nothing there
        step.run()
    assert (own_folder(step.folder) / LOG_FILE).read_text().count("accelerate.commands.launch") == 1


def test_what_is_cleared_away_is_no_links_target(tmp_path, host):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / ".weights.ab.aside").symlink_to(host.root / "folder")
    remove_unfinished(tmp_path / "job")
    assert not list((tmp_path / "job").iterdir())
    (tmp_path / "job" / "weights").symlink_to(host.root / "folder")
    with (
        pytest.raises(StoreError, match="is a link, which is not replaced"),
        new_directory(tmp_path / "job" / "weights"),
    ):
        pass
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["weights"]
    assert host.is_untouched


@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"),
    [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)],
)
def test_files_have_the_modes_that_the_umask_leaves(tmp_path, umask, file_mode, folder_mode):
    program = f"""
import json, os
from pathlib import Path
from dpo_core.contract.store import exclusive, new_directory, write_json
from tasks.run.store_root import prepare_store
os.umask({umask})
root = Path({str(tmp_path)!r}, "store")
prepare_store(root)
with exclusive(root / "a"), new_directory(root / "a" / "made") as aside:
    (aside / "sub").mkdir(mode=0o700)
    (aside / "sub" / "file").touch(mode=0o600)
write_json(root / "a" / "written.json", [])
print(json.dumps({{str(path.relative_to(root)): path.stat().st_mode & 0o777 for path in (root, *root.rglob("*"))}}))"""
    modes = json.loads(os.popen(f"cd {os.getcwd()} && {sys.executable} - <<'END'\n{program}\nEND").read())
    assert modes.pop(".") == 0o700  # made by us: one user's
    folders = {"a", "a/made", "a/made/sub"}
    assert modes == {name: folder_mode if name in folders else file_mode for name in modes}


def test_the_modes_of_a_store_that_is_there_stay(tmp_path):
    from tasks.run.store_root import prepare_store

    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)
    prepare_store(tmp_path / "shared")
    assert (tmp_path / "shared").stat().st_mode & 0o7777 == 0o2775


def test_an_error_file_that_is_a_folder_is_named(tmp_path):
    step = Step(tmp_path, "succeed()")
    (step.folder / ERROR_FILE).mkdir()
    with pytest.raises(StoreError, match=ERROR_FILE):
        step.run()
