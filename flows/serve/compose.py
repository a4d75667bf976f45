"""What three services of images/compose.yaml do: `serve` is Prefect's server, `deploy` brings everything to the one of
PREFECT_API_URL, `work` runs the worker. Each with the settings of `make up`, but where the environment says otherwise.

`pairline up` and `down` do the same on one machine. Here steps run as containers of
PAIRLINE_TRAINER_IMAGE, since the orchestrator's image has no torch, and runs start in PAIRLINE_FOLDER, since the engine,
which is the host's, mounts for a step only what has the same path there.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dpo_core.contract.errors import ConfigError, PairlineError
from dpo_core.contract.visible import one_line
from flows.serve.settings import (
    DATABASE_PATIENCE,
    OF_ALL,
    PROJECT,
    RUN_SETTINGS,
    SERVER_SETTINGS,
    WORKER_SETTINGS,
    settings_from_environment,
)
from flows.serve.up import POLL_SECONDS, deploy, stop_runs
from tasks.image.config import ImageConfig
from tasks.text.terminal import say

AFTER_DPO = "flows.post_training.rlvr_after_dpo"
PORT = 4200  # inside; images/compose.yaml says which of the host's leads to it
SETTINGS = {  # by the command; the services know nothing of each other
    "serve": SERVER_SETTINGS | DATABASE_PATIENCE | OF_ALL,
    "deploy": RUN_SETTINGS | OF_ALL,
    "work": RUN_SETTINGS | WORKER_SETTINGS | OF_ALL,
}


def required(environment: Mapping[str, str], name: str) -> str:
    """Return a variable's value. Raises ``ConfigError``."""
    if not (value := environment.get(name)):
        raise ConfigError(f"{name} is not set; images/compose.yaml sets it.")
    return value


def deployments_with_containers(file: dict[str, Any], folder: str, image: str) -> dict[str, Any]:
    """Return the contents of prefect.yaml for runs that start in ``folder`` and whose steps are containers of
    ``image``.

    Raises ``ConfigError`` unless the image is named by an id or digest.
    """
    try:
        ImageConfig(use=image)
    except ValidationError:
        raise ConfigError(
            f"PAIRLINE_TRAINER_IMAGE is {image}, expected an id (sha256:...) or a digest "
            "(repository@sha256:...): a tag may be moved. `pairline image` prints it."
        ) from None
    return file | {
        "deployments": [_with_containers(deployment, folder, image) for deployment in file["deployments"]]
    }


def _with_containers(deployment: dict[str, Any], folder: str, image: str) -> dict[str, Any]:
    compute, use = {"launcher": "docker"}, {"use": image}
    parameters = dict(deployment.get("parameters", {}))
    entrypoint = (
        deployment["entrypoint"].replace(".py:", ".").replace("/", ".")
    )  # a module's: the folder holds no code
    if "config" in parameters:
        parameters["config"] = parameters["config"] | {"compute": compute, "image": use}
    if "overrides" in parameters:
        parameters["overrides"] = [*parameters["overrides"], "compute.launcher=docker", f"image.use={image}"]
    if entrypoint == AFTER_DPO:
        parameters |= {"compute": compute, "image": use}
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": folder}}]
    return deployment | {"entrypoint": entrypoint, "parameters": parameters, "pull": pull}


def serve() -> int:
    """Become Prefect's server, for whoever reaches the container: its password guards the API."""
    argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "0.0.0.0", "--port", str(PORT)]
    os.execv(argv[0], argv)


def deploy_all() -> int:
    """Bring pool, deployments, limits, automations. Raises ``PairlineError``."""
    from flows.serve.server_objects import prepare_limits_and_automations, prepare_pool

    folder, image = (required(os.environ, name) for name in ("PAIRLINE_FOLDER", "PAIRLINE_TRAINER_IMAGE"))
    file = deployments_with_containers(yaml.safe_load((PROJECT / "prefect.yaml").read_text()), folder, image)
    settings = settings_from_environment()
    prepare_pool(settings)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as written:
        yaml.safe_dump(file, written, sort_keys=False)
        written.flush()
        deploy(dict(os.environ), Path(written.name))
    say(prepare_limits_and_automations(settings))
    return 0


def work() -> int:
    """Run the worker until SIGTERM: then its runs are asked to write a checkpoint and end, and the next start has them
    go on.

    -> the worker's exit status if it ends by itself
    """
    from flows.serve.stranded import settle_stranded_runs

    asked_to_stop = False

    def stop(*_: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    signal.signal(signal.SIGTERM, stop)
    settings, name = settings_from_environment(), socket.gethostname()
    for line in settle_stranded_runs(name):
        say(one_line(f"run      {line}"))
    with subprocess.Popen(settings.worker_argv(name)) as worker:
        while not asked_to_stop:
            if worker.poll() is not None:
                return worker.returncode
            time.sleep(POLL_SECONDS)
        runs, killed = stop_runs(required(os.environ, "PREFECT_API_URL"), worker.pid)
        say(f"runs     {runs} stopped, {killed} of them killed")
    return 0


COMMANDS: dict[str, Callable[[], int]] = {"serve": serve, "deploy": deploy_all, "work": work}


def main(argv: list[str]) -> int:
    """Exit status 0 when everything is there, or when the worker was asked to stop."""
    if len(argv) != 2 or argv[1] not in COMMANDS:
        say(f"usage: python -m flows.serve.compose {'|'.join(COMMANDS)}", sys.stderr)
        return ConfigError.exit_code
    # Before Prefect is imported, which reads them then; runs and the worker inherit them.
    os.environ |= {name: value for name, value in SETTINGS[argv[1]].items() if name not in os.environ}
    try:
        return COMMANDS[argv[1]]()
    except PairlineError as error:
        say(f"Error: {error}", sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
