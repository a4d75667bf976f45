"""A stand-in for the trainer image, made in seconds: Debian's Python, the container's first program, and a launcher
that starts a program of the test's own where `accelerate launch` would start the trainer.

It is what the launcher's own tests run: how a container is started, found again, stopped and judged does not depend on what
is computed in it. Real steps in the real image: ``test_steps_in_containers.py``.
"""

import io
import json
import sys
import tarfile
import textwrap
from pathlib import Path

import docker

from dpo_core.contract.data_jobs import ConvertJob, ConvertResult
from dpo_core.contract.job import LOG_FILE
from dpo_core.contract.store import sha256_file
from tasks.image.image_ref import PYTHON
from tasks.launch.command import step_command
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.docker.config import DockerConfig
from tasks.launch.docker.launcher import DockerLauncher
from tasks.launch.launcher import CommandSpec
from tasks.launch.run_job import in_store, run_job

ROOT = Path(__file__).parents[3]
NAME = "pairline-stand-in:test"
FIRST_PROGRAM = (
    *("dpo_core/__init__.py", "dpo_core/in_container.py"),
    *(
        f"dpo_core/contract/{name}.py"
        for name in ("process_group", "rank_container", "reported_code", "errors", "visible")
    ),
)
# Like accelerate's: starts the trainer as its child, dies of SIGTERM at once, ends with 1 whatever the child died of.
LAUNCH = """
    import subprocess, sys
    from pathlib import Path
    folder = Path(sys.argv[sys.argv.index("--job") + 1]).parent
    sys.exit(1 if subprocess.run([sys.executable, folder / "trainer.py", folder]).returncode else 0)
"""
TRAINER = """
    import json, os, signal, sys, time
    from pathlib import Path
    folder = Path(sys.argv[1])
    with open(folder / "starts", "a") as starts:
        starts.write("start\\n")

    def succeed():
        (folder / "weights").write_text("weights")
        (folder / "result.json").write_text((folder / "good-result").read_text())

    def wait_for(name):
        while not (folder / name).exists():
            time.sleep(0.05)

"""


def build_stand_in(client: docker.DockerClient, base: str) -> str:
    """Build the image; returns its id."""
    files = {
        "Dockerfile": f"FROM {base}\nCOPY . /opt/stand-in\nCOPY bin {Path(PYTHON).parent}\nENV PYTHONPATH=/opt/stand-in\n",
        "accelerate/__init__.py": "",
        "accelerate/commands/__init__.py": "",
        "accelerate/commands/launch.py": textwrap.dedent(LAUNCH),
    }
    files |= {name: (ROOT / name).read_text() for name in FIRST_PROGRAM}
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, text in files.items():
            about = tarfile.TarInfo(name)
            about.size, about.mode = len(text.encode()), 0o644
            tar.addfile(about, io.BytesIO(text.encode()))
        link = tarfile.TarInfo(f"bin/{Path(PYTHON).name}")
        link.type, link.linkname = tarfile.SYMTYPE, "/usr/bin/python3"
        tar.addfile(link)
    context.seek(0)
    image, _ = client.images.build(fileobj=context, custom_context=True, tag=NAME, rm=True)
    return image.id


class ContainerStep:
    """A job whose program is ``body``, run in containers of ``image`` on the engine at ``address``."""

    def __init__(self, root: Path, address: str, image: str, body: str = "", **settings: object) -> None:
        self.root, self.address, self.image = root, address, image
        (root / "source").mkdir(exist_ok=True)
        job = ConvertJob(source_dir=root / "source", source_sha256="abc")
        self.job = in_store(job, root / "store")
        self.folder = self.job.out_dir
        if body:
            self._write(body)
        own = {"memory_gib": 1} | {
            name: settings.pop(name) for name in list(settings) if name in DockerConfig.model_fields
        }
        compute = {"launcher": "docker", "stop_grace_seconds": 60, "step_timeout_seconds": 600} | settings
        self.launcher = DockerLauncher(
            ComputeConfig(**compute), image, "python3", DockerConfig(**own), engine_address=address
        )

    def _write(self, body: str) -> None:
        self.folder.mkdir(parents=True)
        (self.root / "expected").write_text("weights")
        good = {
            "job_fingerprint": self.job.fingerprint,
            "path": str(self.folder),
            "files": {"weights": sha256_file(self.root / "expected")},
        }
        (self.folder / "good-result").write_text(json.dumps(good))
        (self.folder / "trainer.py").write_text(textwrap.dedent(TRAINER) + textwrap.dedent(body))

    def run(self, context: Context = Context()) -> ConvertResult:
        return run_job(self.job, self.launcher, context)

    def go_on(self) -> None:
        """End what a program that calls ``wait_for("go-on")`` waits for. So what a test does meanwhile comes in time,
        however slow the machine."""
        (self.folder / "go-on").touch()

    def orchestrator(self) -> list[str]:
        """The same run as a program of its own, that can be killed."""
        return [
            sys.executable,
            "-m",
            "tests.containers.launch.stand_in",
            str(self.root),
            self.address,
            self.image,
        ]

    @property
    def num_starts(self) -> int:
        path = self.folder / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def log_lines(self) -> list[str]:
        """What the step printed, without our heads."""
        path = self.folder / LOG_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line and not line.startswith("# ")]


def command_of(step: ContainerStep) -> CommandSpec:
    """The job's command, as the launcher gets it."""
    return step_command(step.job, step.launcher.compute, step.launcher.machine, step.launcher.python)


if __name__ == "__main__":
    ContainerStep(Path(sys.argv[1]), *sys.argv[2:4]).run()
