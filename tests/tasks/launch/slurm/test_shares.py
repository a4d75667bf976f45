"""A reference pass in shares as pure data: flags, scripts, names, what a share gets of a node, progress."""

import json
import shlex
import subprocess

import pytest

from dpo_core.contract.progress import MARK, ProgressEvent, parse_line
from dpo_core.contract.reference_folder import model_cache_folder
from tasks.launch.command import typical_command
from tasks.launch.compute import Machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context, RunName
from tasks.launch.launcher import CommandSpec
from tasks.launch.launchers import LauncherSections
from tasks.launch.slurm.batch import Submission, batch_job
from tasks.launch.slurm.client import QueuedJob
from tasks.launch.slurm.config import SlurmConfig
from tasks.launch.slurm.history import remember, starts_so_far
from tasks.launch.slurm.launcher import SlurmLauncher
from tasks.launch.slurm.names import share_folder, share_key, share_of
from tasks.launch.slurm.record import forget_earlier
from tasks.launch.slurm.share_progress import SharesProgress
from tasks.launch.slurm.shares import Shares, compute_of_step, ended_well, forget_shares, node_asked_for
from tests.slurm_cluster.small_step import SmallStep
from tests.tasks.launch.slurm.test_record import make_start
from tests.tasks.launch.test_command import REFERENCE

SLURM = SlurmConfig(
    reference_array=8, gpus_per_node="h100:8", cpus_per_node=96, memory_gib=1024, partition="gpu"
)
COMPUTE = ComputeConfig(
    launcher="slurm", machines=4, num_processes=32, sharding="fsdp2", shard_degree=8, tensor_degree=2
)


def job(tmp_path, shares: Shares | None):
    folder = tmp_path / "it's/reference/0123456789abcdef"
    program = ("-m", "dpo_core", "reference", "--job", str(folder / "job.json"))
    command = CommandSpec(
        ("python",), folder, 60.0, program=program, step="reference", job_fingerprint="ab" * 32
    )
    machine = node_asked_for(COMPUTE, SLURM, "reference")
    return batch_job(
        command, SLURM, machine, Submission("abc", tmp_path / "own", {}, None, shares), RunName(), {}
    )


@pytest.mark.parametrize(
    ("indices", "written"),
    [((0,), "0"), ((0, 1, 2, 3), "0-3"), ((1, 2, 5), "1-2,5"), ((0, 2, 4), "0,2,4"), ((3, 6, 7), "3,6-7")],
)
def test_indices_are_written_as_sbatch_reads_them(indices: tuple[int, ...], written: str):
    assert Shares(indices, 8).ranges == written


def test_a_share_asks_for_one_card_and_its_part_of_a_node(tmp_path):
    flags = job(tmp_path, Shares((0, 1, 2), 8)).flags
    for flag in (
        *("--array=0-2", "--nodes=1", "--ntasks=1", "--cpus-per-task=12", "--gpus-per-node=h100:1"),
        *("--mem=131072M", "--dependency=singleton", "--requeue"),
        f"--output={tmp_path}/own/share-%a-of-8/abc-%a.log",
    ):
        assert flag in flags
    again = job(tmp_path, Shares((2,), 8, is_again=True)).flags
    assert "--dependency=singleton" not in again  # it would wait for the others of its pass
    assert "--array=2" in again
    whole = job(tmp_path, None).flags
    assert not [flag for flag in whole if flag.startswith("--array")]
    assert {"--gpus-per-node=h100:1", "--cpus-per-task=12", "--dependency=singleton"} <= set(whole)
    assert node_asked_for(COMPUTE, SLURM, "train") == Machine(96, 8, 1024 * 2**30)


def test_the_script_of_a_share_writes_into_its_own_record(tmp_path):
    script = job(tmp_path, Shares((0, 1, 2), 8)).script
    assert '--share "$SLURM_ARRAY_TASK_ID/8"\ncode=$?' in script
    environment = {"HOME": "/nowhere", "PATH": "/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "2"}
    environment |= {"SLURM_ARRAY_JOB_ID": "48", "SLURM_JOB_ID": "50", "SLURM_JOB_NODELIST": "n1"}
    subprocess.run(["bash"], input=script, text=True, env=environment, cwd=tmp_path, check=False)
    start = tmp_path / "own/share-2-of-8/abc-2.0"
    assert (start / "started").read_text().split()[1:3] == ["48_2", "n1"]
    assert "The store is not to be seen" in (start / "refused").read_text()
    assert (start.parent / "attempt").read_text() == "abc-2.0\n"
    assert shlex.quote(str(tmp_path / "own")) in job(tmp_path, None).script


def test_a_pass_in_shares_is_one_process_whatever_shares_the_model_out():
    alone = compute_of_step(COMPUTE, SLURM, "reference")
    assert (alone.num_processes, alone.machines, alone.sharding, alone.tensor_degree) == (1, 1, "none", 1)
    assert ComputeConfig(**alone.model_dump()) == alone  # a recipe could say so
    assert compute_of_step(COMPUTE, SLURM, "train") is COMPUTE
    assert compute_of_step(COMPUTE, SlurmConfig(), "reference") is COMPUTE
    launcher = SlurmLauncher.of(COMPUTE, LauncherSections(slurm=SLURM), None)
    assert launcher.machine_for("reference", Context()) == Machine(12, 1, 128 * 2**30)
    assert launcher.compute_for("reference") == alone
    on_cpu = SlurmConfig(reference_array=3, cpus_per_node=8)
    assert node_asked_for(ComputeConfig(num_processes=4), on_cpu, "reference") == Machine(2, 0)


def test_a_job_of_an_array_is_known_by_its_index():
    def seen(job_id: str, **comment: object) -> QueuedJob:
        return QueuedJob(
            job_id, "RUNNING", "", "n1", "gpu", "", "pairline-reference", {"key": "abc"} | comment
        )

    assert (seen("48_3", shares=8).key, seen("48_3", shares=8).num_shares) == ("share-3-of-8/abc-3", 8)
    assert (seen("48").key, seen("48").num_shares) == ("abc", 0)
    for hostile in ("8", None, [8]):
        assert seen("48_3", shares=hostile).num_shares == 0


def test_a_key_of_digits_alone_is_of_no_share():
    assert share_of(share_key("123456789012", 3, 8)) == (3, 8)
    assert share_of("123456789012") is share_of("abc") is share_of("share-x-of-8/abc-3") is None


def share_start(record, index: int, number: int, exit_file: str, rank: str = '"code": 0') -> None:
    """What a share's start leaves, and that it is the newest."""
    folder, name = share_folder(record, index, 6), f"abc-{index}.{number}"
    ended = f'{{"rank": 0, "host": "n1", {rank}}}'
    make_start(folder, name, started=f"{number + 1} 48_{index} n1", exit=exit_file, rank_0_json=ended)
    (folder / "attempt").write_text(name)


def test_shares_that_ended_well_are_not_begun_again(tmp_path):
    command = SmallStep(tmp_path, "", step="reference").command()
    for index, exits in enumerate([("137 5", "0 9"), ("0 5", "137 9"), ("0 5", ""), ("",), ()]):
        for number, exit_file in enumerate(exits):
            share_start(tmp_path, index, number, exit_file)
    assert ended_well(command, tmp_path, 6) == {0}
    assert ended_well(command, tmp_path, 5) == set()  # shares of another count have other rows
    forget_earlier(tmp_path)
    assert ended_well(command, tmp_path, 6) == {0}
    remember(tmp_path, now=20.0)
    forget_shares(tmp_path, but=[0], count=6)
    assert [place.name for place in tmp_path.glob("share-*")] == ["share-0-of-6"]
    rows = starts_so_far(tmp_path, ["share-0-of-6/abc-0"], now=20.0)
    assert len(rows) == 7
    assert sorted(row.job_id for row in rows) == ["48_0", "48_0", "48_1", "48_1", "48_2", "48_2", "48_3"]


def test_a_share_is_believed_by_its_process_and_its_newest_start_whatever_the_clocks_say(tmp_path):
    """srun ends with 0 where the controller has lost its node; the node of an earlier start may be ahead of time."""
    command = SmallStep(tmp_path, "", step="reference").command()
    share_start(tmp_path, 0, 0, "0 5", rank='"code": 75')
    share_start(tmp_path, 1, 0, "0 5", rank='"time": 1')
    share_start(tmp_path, 2, 9, "0 5")
    share_start(tmp_path, 2, 0, "137 5")
    assert ended_well(command, tmp_path, 6) == set()
    share_start(tmp_path, 3, 9, "137 5")
    share_start(tmp_path, 3, 0, "0 5")
    assert ended_well(command, tmp_path, 6) == {3}


def test_a_share_whose_values_are_gone_is_begun_again(tmp_path):
    """The cache was collected or removed: all would be left to the one job that follows."""
    job = REFERENCE.model_copy(update={"cache_dir": tmp_path / "cache"}).at(tmp_path / "job")
    job.out_dir.mkdir()
    job.write()
    command = SmallStep(tmp_path, "", step="reference").command(folder=job.out_dir)
    share_start(tmp_path, 0, 0, "0 5")
    assert ended_well(command, tmp_path, 6) == set()
    other = job.cache_dir / "0123456789abcdef"
    other.mkdir(parents=True)
    (other / "shard-ab.npz").touch()  # another model's
    assert ended_well(command, tmp_path, 6) == set()
    model_cache_folder(job).mkdir()
    (model_cache_folder(job) / "shard-cd.npz").touch()
    assert ended_well(command, tmp_path, 6) == {0}


def test_progress_of_shares_is_one_line():
    progress = SharesProgress(count=4)

    def told(share: int, done: int, total: int) -> tuple[int, int]:
        event = ProgressEvent(
            step="reference", done=done, total=total, unit="pairs", phase="reference", rate=2.0
        )
        merged = parse_line(progress.merged(share, event))
        assert merged is not None
        return merged.done, merged.total

    assert (
        json.loads(progress.merged(1, ProgressEvent(step="r", done=0, total=10, unit="pairs")))[MARK]
        == "progress"
    )
    assert told(1, 5, 10) == (5, 40)
    assert told(2, 4, 12) == (9, 44)
    progress.done = {1, 3}  # 3 had nothing to do, and has told nothing
    assert told(2, 8, 12) == (10 + 11 + 8, 44)


def test_a_plan_shows_the_array_and_the_pass_that_follows(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    sections = LauncherSections(slurm=SLURM)
    machine = SlurmLauncher.target(COMPUTE, sections, "reference")
    text = SlurmLauncher.preview(COMPUTE, sections, typical_command("reference", COMPUTE, machine, tmp_path))
    assert (
        text.index("# reference, 8 shares: not checked")
        < text.index("--array=0-7")
        < text.index("# reference: ")
    )
    assert text.count("--gpus-per-node=h100:1") == 2
