"""What a step in a container may do to its host by the only way back: its own folder, its results, and what it prints.

``test_break_out.py`` looks from inside; here it is the orchestrator that is lured, on a real engine, with the real launcher.
"""

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_core.contract.errors import PairlineError, StepCrashed, StoreError, TimedOut
from dpo_core.contract.job import LOG_FILE
from dpo_core.contract.store import sha256_file
from tasks.launch.context import Context
from tasks.launch.docker.engine import ContainerEngine
from tasks.launch.docker.reap import reap
from tasks.launch.lines import LONGEST_LINE
from tasks.launch.own_folder import own_folder
from tasks.run.files import read_step
from tasks.run.garbage import collect
from tasks.run.store_root import prepare_store
from tests.containers.launch.stand_in import ContainerStep, command_of
from tests.containers.launch.watching import container_of, killed_orchestrator
from tests.programs.hostile_steps import TRAPS, Host, results_to_refuse
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host")


@pytest.mark.parametrize("trap", TRAPS)
def test_no_trap_in_its_folder_leads_the_orchestrator_out(
    make: Callable[..., ContainerStep], tmp_path, host, trap
):
    """The step is retried, reported on, and collected as garbage: each looks into its folder."""
    prepare_store(tmp_path / "store")
    step = make(host.attack(TRAPS[trap]))
    with pytest.raises(StepCrashed, match=r"exit code 3|exit code 1") as caught:
        step.run()
    assert caught.value.retryable
    with pytest.raises(PairlineError):
        step.run()
    files = read_step("convert", step.folder)
    assert (files.result, files.environment) == (None, None)
    assert host.is_untouched
    collect(tmp_path / "store", older_than_days=-1, keep_per_name=0, dry_run=False)
    assert host.is_untouched


def test_a_trap_set_while_nobody_watches_leads_neither_who_attaches_nor_reap_out(
    make, client, own_engine, host
):
    """The old attack: position and log of a container that runs on are looked at by whoever comes next."""
    set_traps = host.attack(TRAPS["symbolic links"]).replace(
        "sys.exit(3)", "print('set', flush=True); time.sleep(600)"
    )
    step = make(set_traps)
    killed_orchestrator(step, lines=1)
    wait_until(lambda: (step.folder / "accelerate.json").is_symlink())
    (done,) = reap(ContainerEngine(own_engine.address))
    assert done.done == "stopped and removed"
    assert host.is_untouched
    killed_orchestrator(replace_body(step, set_traps), lines=1)
    wait_until(lambda: "set" in container_of(client, step).logs().decode())
    container_of(client, step).kill()
    with pytest.raises(PairlineError):
        step.run()
    assert host.is_untouched
    reap(ContainerEngine(own_engine.address))


def replace_body(step: ContainerStep, body: str) -> ContainerStep:
    """The same job with its folders as new."""
    for number, folder in enumerate((step.folder, own_folder(step.folder))):
        folder.rename(step.root / f"left by the first {number}")
    return ContainerStep(step.root, step.address, step.image, body)


REFUSED = list(results_to_refuse("", Path("/a"), Path("/b"), ""))


def test_no_result_is_believed_that_leads_elsewhere_or_has_no_hashes(make, tmp_path, host):
    """All of them in one folder, one start each."""
    step = make("exec((folder / 'leave').read_text())")
    made = results_to_refuse(step.job.fingerprint, step.folder, host.root, sha256_file(tmp_path / "expected"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for what in (
        "another folder",
        "a link",
        "no hashes",
        "a link as its file",
        "a link beside its files",
        "a terabyte",
        "a thousand nested lists",
        "a file outside",
    ):
        code, refusal = made[what]
        clean = (
            "for name in ('out', 'weights', 'result.json'): (folder / name).unlink(missing_ok=True)\n"
            "import shutil; shutil.rmtree(folder / 'made', ignore_errors=True)\n"
        )
        (step.folder / "leave").write_text(clean + "\n".join(line.strip() for line in code.splitlines()))
        (step.folder / "result.json").unlink(missing_ok=True)
        with pytest.raises(StoreError, match=refusal):
            step.run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert host.is_untouched


def test_nothing_is_mounted_because_a_step_left_a_link_to_it(make, tmp_path):
    private = tmp_path / "private"
    private.write_text("a person's own")
    private.chmod(0o644)
    left = tmp_path / "store" / "export" / "ab" / "checkpoint"
    left.mkdir(parents=True)
    (left / "tokenizer.json").symlink_to(private)
    step = make(f"""
        place = Path({str(left)!r}) / "tokenizer.json"
        print(place.is_symlink(), place.exists(), Path({str(private)!r}).exists(), flush=True)
        print([line.split()[4] for line in open("/proc/self/mountinfo") if {str(tmp_path)!r} in line])""")
    lines: list[str] = []
    command = replace(command_of(step), inputs=(left,), named_by_people=())
    step.launcher.run((command,), Context(), lines.append, lambda: None)
    assert lines[0] == "True False False"
    assert sorted(json.loads(lines[1].replace("'", '"'))) == sorted([str(left), str(step.folder)])


def test_a_container_that_runs_on_is_ended_before_its_result_is_believed(make, client):
    """It could put a link in the place of what was looked at, and have that mounted into the next step."""
    step = make("succeed(); print('up', flush=True); time.sleep(600)")
    killed_orchestrator(step, lines=1)
    assert container_of(client, step).status == "running"
    step.run()
    assert step.num_starts == 1
    assert client.containers.list(all=True, ignore_removed=True) == []


def test_a_container_that_prints_without_end_is_stopped_in_time(make, tmp_path):
    step = make(
        """
        sys.stdout.write("a" * 30_000_000)
        while True:
            print("b" * 5_000)""",
        step_timeout_seconds=4,
        stop_grace_seconds=1,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TimedOut):
        step.run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    with (own_folder(step.folder) / LOG_FILE).open() as log:
        assert max(len(line) for line in log) < LONGEST_LINE + 100


def test_a_file_of_the_host_is_not_to_be_had_by_a_hard_link(make, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model").write_text("weights")
    step = make(f"""
        for source in ({str(tmp_path / "source" / "model")!r}, "/etc/passwd", "/proc/1/environ"):
            for name in (".lock", "log.txt", "stolen"):
                (folder / name).unlink(missing_ok=True)
                try:
                    os.link(source, folder / name)
                    print("BROKE OUT", source, name)
                except OSError as error:
                    print("refused", error.errno)
        succeed()""")
    step.run()
    assert len(read_log(step)) == 9
    assert not [line for line in read_log(step) if not line.startswith("refused")]


def read_log(step: ContainerStep) -> list[str]:
    text = (own_folder(step.folder) / LOG_FILE).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("# ")]
