"""What happens to an array of shares that a private cluster cannot be made to do at will; of 22.05, recorded."""

import json
import shlex
import subprocess

import pytest

from dpo_core.contract.progress import MARK, ProgressEvent
from tasks.launch.context import Context
from tasks.launch.launcher import Ended
from tasks.launch.log_position import save_position
from tasks.launch.own_folder import make_own_folder
from tasks.launch.slurm.array import ShareRun
from tasks.launch.slurm.own_jobs import active_jobs
from tasks.launch.step_log import step_log
from tests.slurm_cluster.small_step import SmallStep
from tests.tasks.launch.slurm.recorded import (
    KEY,
    NO_ANSWER,
    RecordedSlurm,
    after,
    queued,
    start_lines,
    write_queue,
)
from tests.tasks.launch.slurm.test_room import FULL

COUNT = 2


@pytest.fixture
def step(tmp_path) -> SmallStep:
    settings = {"reference_array": COUNT, "cpus_per_node": 2, "poll_seconds": 0.1}
    step = SmallStep(tmp_path, "", 1, settings, step="reference")
    step.command()
    make_own_folder(step.folder)
    step.record.mkdir()
    return step


def run(step: SmallStep, context: Context = Context()) -> Ended | None:
    """All shares alone, without the pass that follows."""
    command = step.command()
    with step_log(step.folder, context) as log:
        between = (context, log.line, lambda: None)
        return ShareRun(step.launcher, command, COUNT, between).run(active_jobs(command))


def end_of_all(step: SmallStep, key: str) -> str:
    """Shell after which all shares of an array have ended well."""
    ends = [
        start_lines(step.record, f"share-{index}-of-{COUNT}", f"{key}-{index}", 0) for index in range(COUNT)
    ]
    return "\n".join([*ends, ': >"$here/queue"'])


def submissions_that(step: SmallStep, and_then: str = "", words: str = "") -> str:
    """sbatch, of jobs that have all ended when it answers."""
    lines = [KEY]
    for index in range(COUNT):
        left = start_lines(step.record, f"share-{index}-of-{COUNT}", f"$key-{index}", 0, words)
        lines.append(f'case "$*" in *"--array={index} "*|*"--array=0-{COUNT - 1} "*)\n{left};; esac')
    return "\n".join([*lines, ': >"$here/queue"', and_then, "echo 49"])


def test_shares_that_are_submitted_beside_others_do_not_wait_for_them(slurm: RecordedSlurm, step: SmallStep):
    """A singleton waits for all jobs of its name, and those of the pass have one name."""
    slurm.does("sbatch", submissions_that(step))
    assert run(step) is None
    (call,) = slurm.calls("sbatch")
    assert "--array=0-1 " in call
    assert "--dependency=singleton" in call
    (step.record / "share-0-of-2/attempt").unlink()
    (step.record / "share-1-of-2/attempt").unlink()
    slurm.has_queued(queued(step.command(), "48_0", "RUNNING", "abc", count=COUNT))
    end_0 = start_lines(step.record, "share-0-of-2", "abc-0", 0)
    slurm.does("sbatch", submissions_that(step, and_then=end_0))
    for place in step.record.glob("share-*/*.0"):
        (place / "exit").write_text("137 9\n")
    assert run(step) is None
    call = slurm.calls("sbatch")[-1]
    assert "--array=1 " in call
    assert "--dependency" not in call


def test_a_share_with_two_jobs_is_followed_by_one_and_the_other_ends_nobody(
    slurm: RecordedSlurm, step: SmallStep
):
    """Of a submission whose answer was lost: the second waits, and is cancelled."""
    lines = [queued(step.command(), f"48_{share}", "RUNNING", "abc", count=COUNT) for share in range(COUNT)]
    slurm.has_queued(*lines, queued(step.command(), "49_0", "PENDING", "def", "Resources", count=COUNT))
    slurm.does("scancel", end_of_all(step, "abc"))
    assert run(step) is None
    assert slurm.calls("scancel") == ["49_0"]
    assert slurm.calls("sbatch") == []


def test_the_second_job_of_a_share_that_runs_is_read_to_its_end(slurm: RecordedSlurm, step: SmallStep):
    """It has ended the first one, or found all there; each of its lines is in the log once, whoever reads on."""
    both = [
        queued(step.command(), f"{job}_0", "RUNNING", key, count=COUNT)
        for job, key in ((48, "abc"), (49, "def"))
    ]
    slurm.has_queued(*both)
    share_0 = start_lines(step.record, "share-0-of-2", "abc-0", 75, "first\\n")
    beside = start_lines(step.record, "share-0-of-2", "def-0", 0, "second\\n")
    share_1 = start_lines(step.record, "share-1-of-2", "$key-1", 0, "third\\n")
    gone = f'printf "%s\\n" {shlex.quote(both[1])} >"$here/queue"'
    slurm.does("sbatch", f"{KEY}\n{share_1}\n{share_0}\n{gone}\necho 50")
    times = '[ $(wc -l <"$here/squeue.calls") -lt 12 ] || { ' + beside + '; : >"$here/queue"; }'
    slurm.does("squeue", f'{times}\ncat "$here/queue"')
    assert run(step) is None
    assert sorted(step.log_lines) == ["[share 0] first", "[share 0] second", "[share 1] third"]
    slurm.does("sbatch", "exit 1")
    assert run(step) is None  # nothing is submitted, no line is there twice
    assert len(step.log_lines) == 3


def test_a_share_whose_nodes_cannot_launch_it_goes_on_though_scancel_has_no_answer(
    slurm: RecordedSlurm, step: SmallStep
):
    """What stays held in the queue is cancelled when all is done."""
    held = queued(step.command(), "48_0", "PENDING", "abc", "launch failed requeued held", count=COUNT)
    slurm.has_queued(held)
    (step.record / "share-0-of-2").mkdir()
    slurm.does("scancel", NO_ANSWER)
    slurm.does(
        "sbatch", submissions_that(step, and_then=f'printf "%s\\n" {shlex.quote(held)} >"$here/queue"')
    )
    assert run(step) is None
    assert [call.partition("--array=")[2][0] for call in slurm.calls("sbatch")] == ["1", "0"]
    assert slurm.calls("scancel") == ["48_0", "48_0"]


def test_a_share_that_is_preempted_for_good_is_begun_again_and_not_for_ever(
    slurm: RecordedSlurm, step: SmallStep
):
    """PreemptMode=CANCEL. As often as it takes while the cache grows, twice without anything new in it."""
    command, cache = step.command(), step.folder / "cache"
    cache.mkdir()
    preempted = []
    for index in range(COUNT):
        write_queue(
            slurm.folder / f"line-{index}", [queued(command, f"49_{index}", "PREEMPTED", "KEY", count=COUNT)]
        )
        patterns = f'*"--array={index} "*|*"--array=0-{COUNT - 1} "*'
        listed = f'sed "s/KEY/$key/" "$here/line-{index}" >>"$here/queue"'
        preempted.append(f'case "$*" in {patterns}) {listed};; esac')
    slurm.does("sbatch", "\n".join([KEY, *preempted, "echo 49"]))
    few, newest = '$(cat "$here/sbatch.calls" | wc -l) -gt 3', '$(wc -l <"$here/squeue.calls")'
    grows = f"[ {few} ] || touch {shlex.quote(str(cache))}/{newest}"
    slurm.does("squeue", f'{grows}\ncat "$here/queue"')
    ended = run(step)
    assert ended is not None
    assert "made room for one of higher priority" in ended.cause
    assert 5 <= len(slurm.calls("sbatch")) <= 9


def test_the_logs_of_another_count_are_read_before_they_go(slurm: RecordedSlurm, step: SmallStep):
    """``slurm.reference_array`` was changed between two attempts: the lines of before come first, each once."""
    for share in (0, 3):
        folder = step.record / f"share-{share}-of-4"
        folder.mkdir()
        (folder / f"abc-{share}.log").write_text("a\nb\n")
    own = make_own_folder(step.folder)
    (own / "log.txt").write_text("[share 0] a\n")
    save_position(step.folder, {"share-0-of-4/abc-0": "2", "share-3-of-4/abc-3": "0"})
    (own / "log.txt").write_text("[share 0] a\n[share 0] b\n")  # and was killed before it had saved that
    slurm.does("sbatch", submissions_that(step, words="c\\n"))
    assert run(step) is None
    before, after = step.log_lines[:4], step.log_lines[4:]
    assert before == ["[share 0] a", "[share 0] b", "[share 3] a", "[share 3] b"]
    assert sorted(after) == ["[share 0] c", "[share 1] c"]
    assert {place.name for place in step.record.glob("share-*")} == {"share-0-of-2", "share-1-of-2"}


def test_shares_that_are_ended_beside_the_pass_are_read_to_their_end(slurm: RecordedSlurm, step: SmallStep):
    """They came late, when all was there and the pass had begun: no line is lost, none is there twice."""
    the_pass = queued(step.command(), "50", "RUNNING", "fed")
    slurm.has_queued(queued(step.command(), "48_0", "RUNNING", "abc", count=COUNT), the_pass)
    (step.record / "share-0-of-2").mkdir()
    event = ProgressEvent(step="reference", done=1, total=2, unit="pairs")
    progress = json.dumps({MARK: "progress", **event.model_dump()})
    (step.record / "share-0-of-2/abc-0.log").write_text(f"x\n{progress}\ny\n")
    (step.record / "fed.log").write_text("a\nb\n")
    own = make_own_folder(step.folder)
    (own / "log.txt").write_text("a\n")
    save_position(step.folder, {"fed": "2"})
    (own / "log.txt").write_text("a\nb\n")  # and was killed before it had saved that
    slurm.does("scancel", f'printf "%s\\n" {shlex.quote(the_pass)} >"$here/queue"')
    ended = f'{start_lines(step.record, "", "fed", 0)}\n: >"$here/queue"'
    slurm.does("squeue", after(8, "squeue", ended, 'cat "$here/queue"'))
    assert step.run() == Ended(0)
    assert step.log_lines == ["a", "[share 0] x", "[share 0] y", "b"]
    assert "50" not in {call.rpartition(" ")[2] for call in slurm.calls("scancel")}


def is_complete(step: SmallStep, *shares: int) -> None:
    """Have these shares ended well before."""
    ends = [start_lines(step.record, f"share-{share}-of-{COUNT}", f"old-{share}", 0) for share in shares]
    subprocess.run(["sh", "-c", "\n".join(ends)], check=True)


@pytest.mark.parametrize("end", ["exit code 11", "scancel"])
def test_a_share_that_is_complete_stays_so_whatever_becomes_of_another_job(
    slurm: RecordedSlurm, step: SmallStep, end: str
):
    is_complete(step, 0, 1)
    slurm.has_queued(queued(step.command(), "48_0", "RUNNING", "abc", count=COUNT))
    write_queue(slurm.folder / "cancelled", [queued(step.command(), "48_0", "CANCELLED", "abc", count=COUNT)])
    failed = f"{start_lines(step.record, 'share-0-of-2', 'abc-0', 11)}\nexit 0"
    ended = failed if end == "exit code 11" else 'cat "$here/cancelled"'
    slurm.does("squeue", after(4, "squeue", ended, 'cat "$here/queue"'))
    assert run(step) is None
    assert slurm.calls("sbatch") == []


def test_a_job_that_waits_for_a_share_that_is_complete_is_cancelled(slurm: RecordedSlurm, step: SmallStep):
    is_complete(step, 0, 1)
    slurm.has_queued(queued(step.command(), "48_0", "PENDING", "abc", count=COUNT))
    slurm.does("scancel", ': >"$here/queue"')
    assert run(step) is None
    assert slurm.calls("scancel") == ["48_0"]


def test_a_share_whose_newer_start_was_lost_is_begun_again(slurm: RecordedSlurm, step: SmallStep):
    """It had ended the one that was followed; what it printed is read."""
    is_complete(step, 1)
    slurm.has_queued(queued(step.command(), "48_0", "RUNNING", "abc", count=COUNT))
    fenced = start_lines(step.record, "share-0-of-2", "abc-0", 75, "first\\n")
    newer = start_lines(step.record, "share-0-of-2", "def-0", None, "second\\n")
    slurm.does(
        "squeue",
        after(4, "squeue", f'[ -e "$here/sbatch.calls" ] || {{\n{fenced}\n{newer}\n}}', 'cat "$here/queue"'),
    )
    slurm.does("sbatch", submissions_that(step, words="third\\n"))
    assert run(step) is None
    (call,) = slurm.calls("sbatch")
    assert "--array=0 " in call
    assert list(dict.fromkeys(step.log_lines)) == [
        f"[share 0] {word}" for word in ("first", "second", "third")
    ]


def test_an_array_that_is_larger_than_the_room_is_submitted_as_there_is(
    slurm: RecordedSlurm, step: SmallStep, monkeypatch
):
    """One job at a time: the others of the pass are watched meanwhile."""
    monkeypatch.setattr("tasks.launch.slurm.share_submits.SECONDS_BETWEEN_TRIES", 0.1)
    first, second = (
        f"{KEY}\n" + start_lines(step.record, f"share-{share}-of-2", f"$key-{share}", code)
        for share, code in ((0, None), (1, 0))
    )
    write_queue(slurm.folder / "line", [queued(step.command(), "40_0", "RUNNING", "KEY", count=COUNT)])
    runs = 'echo "$key" >"$here/key"\nsed "s/KEY/$key/" "$here/line" >"$here/queue"'
    ended = (
        f'key=$(cat "$here/key")\n{start_lines(step.record, "share-0-of-2", "$key-0", 0)}\n: >"$here/queue"'
    )
    room = f'[ -s "$here/queue" ] && {{\n{FULL}\n}}'
    cases = [f'*"--array=0-1 "*) {FULL};;', f'*"--array=0 "*) {first}\n{runs}\necho 40;;']
    cases.append(f'*"--array=1 "*) {room}\n{second}\necho 41;;')
    slurm.does("sbatch", "\n".join(['case "$*" in', *cases, "esac"]))
    slurm.does(
        "squeue", after(10, "squeue", f'[ ! -s "$here/queue" ] || {{\n{ended}\n}}', 'cat "$here/queue"')
    )
    assert run(step) is None
    first, second, *later = (call.partition("--array=")[2].split()[0] for call in slurm.calls("sbatch"))
    assert (first, second, set(later)) == ("0-1", "0", {"1"})
    assert len(later) > 1


def test_shares_whose_submission_was_lost_are_followed_and_no_line_is_there_twice(
    slurm: RecordedSlurm, step: SmallStep
):
    is_complete(step, 1)
    folder = step.record / "share-0-of-2"
    folder.mkdir()
    (folder / "abc-0.log").write_text("a\nb\n")
    (folder / "abc-0.read").write_text("2\n")  # an earlier run has followed it
    write_queue(slurm.folder / "late", [queued(step.command(), "48_0", "RUNNING", "abc", count=COUNT)])
    slurm.does("sbatch", f'cp "$here/late" "$here/queue"\n{NO_ANSWER}')
    ended = f"{start_lines(step.record, 'share-0-of-2', 'abc-0', 0)}\nexit 0"
    slurm.does("squeue", after(6, "squeue", ended, 'cat "$here/queue"'))
    assert run(step) is None
    assert len(slurm.calls("sbatch")) == 1
    assert step.log_lines == ["[share 0] b"]


def test_shares_that_end_the_step_leave_no_secret(slurm: RecordedSlurm, step: SmallStep):
    is_complete(step, 1)
    slurm.does("sbatch", f"{KEY}\n{start_lines(step.record, 'share-0-of-2', '$key-0', 11)}\necho 49")
    (step.record / "secret-HF_TOKEN").touch()
    assert run(step) == Ended(11)
    assert not list(step.record.glob("secret-*"))
