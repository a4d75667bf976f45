"""Where a training is tracked, on its run's page: a link where there is one, else the command that shows the files."""

import contextlib
import re
from pathlib import Path

from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.regular_file import TooLong, opened, read_at_most
from dpo_core.contract.tracking_config import TRACKING_DIR, WANDB_ADDRESS_FILE, Tracker
from tasks.show.artifacts import artifact_key, markdown_artifact, never_fails
from tasks.text.escape import markdown_code, markdown_link, shell_word

# A step may write what it likes: nothing that ends a link, or is a script.
ADDRESS = re.compile(r"https?://[\w.:-]+(/[\w.~%-]+)*/?")
LONGEST_ADDRESS = 2_000  # bytes
SEND_TO_CLEARML = "import sys, clearml; clearml.Task.import_offline_session(sys.argv[1])"


@never_fails
def show_trackers(job: TrainJob, family: str) -> None:
    """Make Markdown ``<name>-trackers`` of a training's trackers; nothing if it has none."""
    if trackers := job.tracking.trackers:
        markdown_artifact(
            "\n".join(f"- {name}: {place_of(name, job.out_dir / TRACKING_DIR)}" for name in trackers),
            artifact_key("trackers", family),
            "Where the training is tracked",
        )


def place_of(tracker: Tracker, folder: Path) -> str:
    """Return, as Markdown, how to see what a tracker was told; ``folder``: of the training's trackers."""
    if tracker == "wandb" and (address := wandb_address(folder)):
        return markdown_link(address, address)
    place = shell_word(str(folder))
    return markdown_code(
        {
            "tensorboard": f"tensorboard --logdir {place}",
            "wandb": f"wandb sync {place}/wandb/*run-*",
            "mlflow": f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {place}/mlruns",
            "trackio": f"TRACKIO_DIR={place}/trackio trackio show",
            "aim": f"aim up --repo {place}",
            "clearml": f"python -c '{SEND_TO_CLEARML}' {place}/clearml/offline/*.zip",
            "comet_ml": f"comet upload {place}/comet/*.zip",
            "dvclive": f"ls {place}/dvclive/plots/metrics",
            "swanlab": f"swanlab sync {place}/swanlab/run-*",
        }[tracker]
    )


def wandb_address(folder: Path) -> str:
    """Return the address of the run's page that the step wrote down; empty where there is none, or it is not one."""
    with (
        contextlib.suppress(OSError, UnicodeDecodeError, TooLong),
        opened(folder / WANDB_ADDRESS_FILE) as file,
    ):
        if ADDRESS.fullmatch(written := read_at_most(file, LONGEST_ADDRESS).decode()):
            return written
    return ""
