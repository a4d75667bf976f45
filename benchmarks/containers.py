"""What a container costs: the same small step as a process and in a container, in turn.

    python -m benchmarks --only containers

The step loads a 2-layer model and answers a prompt, so nearly all of its time is the start of programs and imports. What is
measured is ``run_job`` from call to result: job file, start, wait, log, exit code, removal. The image is there.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from dpo_core.contract.jobs import AnswerJob
from dpo_core.contract.store import hash_files
from tasks.image.config import ImageConfig
from tasks.image.image_ref import PYTHON
from tasks.image.trainer_image import trainer_image
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.launcher import CommandSpec, Launcher, StepImage, launcher_for
from tasks.launch.run_job import run_job
from tests.tiny_models import make_model

IMAGES = Path.home() / ".cache" / "pairline-benchmarks"  # wheels are gathered once
NOTHING = ("-c", "pass")


def _seconds(launcher: Launcher, job: AnswerJob) -> float:
    shutil.rmtree(job.out_dir, ignore_errors=True)
    started = time.monotonic()
    run_job(job, launcher)
    return time.monotonic() - started


def _seconds_of_nothing(launcher: Launcher, folder: Path) -> float:
    """Start and end of a program that does nothing: the launcher alone."""
    folder.mkdir(exist_ok=True)
    (folder / "log.txt").touch()
    command = CommandSpec(
        argv=(launcher.python, *NOTHING),
        folder=folder,
        timeout_seconds=60,
        step="answer",
        job_fingerprint="0" * 64,
    )
    started = time.monotonic()
    launcher.run((command,), Context(), lambda line: None, lambda: None)
    return time.monotonic() - started


def measure(turns: int) -> dict:
    """Launcher -> median seconds of the step and of nothing, over ``turns`` runs of each in turn; the difference."""
    image, _ = trainer_image(ImageConfig(dirty_tree="tag"), IMAGES, None, print)
    process = launcher_for(ComputeConfig())
    docker = launcher_for(ComputeConfig(launcher="docker"), image=StepImage(image.reference, PYTHON))
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"step": [], "nothing": []} for name in ("process", "docker")
    }
    with tempfile.TemporaryDirectory() as name:
        model = make_model(Path(name) / "model")
        for file in model.iterdir():
            file.chmod(0o644)  # safetensors' are the owner's alone
        job = AnswerJob(checkpoint_path=model, files=hash_files(model), prompts=("sky",)).at(
            Path(name) / "answer"
        )
        for launcher in (process, docker):
            _seconds(launcher, job)  # files are in memory from here on
        for _ in range(turns):
            for launcher in (process, docker):
                mine = seconds[launcher.compute.launcher]
                mine["step"].append(_seconds(launcher, job))
                mine["nothing"].append(_seconds_of_nothing(launcher, Path(name) / "nothing"))
    medians = {
        who: {what: statistics.median(values) for what, values in mine.items()}
        for who, mine in seconds.items()
    }
    return {
        "turns": turns,
        "seconds": medians,
        "overhead": {
            what: medians["docker"][what] - medians["process"][what] for what in ("step", "nothing")
        },
    }
