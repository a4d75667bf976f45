"""Training checkpoints: complete or not there, verified when read, no pickle.

    checkpoints/step-00000040/   model.safetensors   optimizer.safetensors   state.json   manifest.json (sha256 per file)

``step`` is the number of finished optimizer steps, so the run goes on with step ``step`` (0-based).
"""

import contextlib
import json
import logging
import re
import shutil
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from dpo_core.contract.errors import StoreError
from dpo_core.contract.store import hash_files, new_directory, verify_files, write_json
from dpo_core.engine.engine import Engine
from dpo_core.engine.tensor_file import open_tensors, write_tensors

log = logging.getLogger(__name__)

MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"
CHECKPOINT_NAME = re.compile(r"step-\d{8,}")


class RunState(BaseModel):
    """What a run knows besides tensors."""

    model_config = ConfigDict(frozen=True)

    step: int
    job_fingerprint: str
    guard: dict[str, float] = {}
    first_metrics: dict[str, float] = {}
    reward_sum: float = 0.0
    num_rewards: int = 0

    @property
    def mean_reward(self) -> float:
        """Over all answers of the finished steps, in the loss's units; 0 before the first."""
        return self.reward_sum / self.num_rewards if self.num_rewards else 0.0


def stored_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a run changes and a checkpoint holds: every parameter and persistent buffer once; tied weights appear
    under their first name. Of a model with frozen weights the trained parameters alone: its adapter."""
    parameters = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    persistent = model.state_dict().keys() if len(trained) == len(parameters) else ()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return trained | buffers


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return ``stored_tensors`` without gradients."""
    return {name: tensor.detach().contiguous() for name, tensor in stored_tensors(model).items()}


def save_weights(folder: Path, engine: Engine) -> dict[str, str]:
    """Write the policy's tensors and a manifest as ``folder``, atomically, by rank 0. Returns sha256 per file there."""
    hashes: dict[str, str] = {}
    with _written_by_main(folder, engine) as aside:
        write_tensors(aside and aside / MODEL_FILE, engine.model_tensors(), {"format": "pt"})
        if aside:
            hashes = hash_files(aside)
            write_json(aside / MANIFEST_FILE, hashes)
    return hashes


def save_checkpoint(root: Path, engine: Engine, state: RunState, keep: int) -> Path:
    """Write a checkpoint by rank 0 and delete all but the newest ``keep``.

    A later one than this is damaged or of another job, else the run would have gone on from it: it goes, too.
    """
    folder = root / f"step-{state.step:08d}"
    with _written_by_main(folder, engine) as aside:
        write_tensors(aside and aside / MODEL_FILE, engine.model_tensors(), {"format": "pt"})
        write_tensors(aside and aside / OPTIMIZER_FILE, engine.optimizer_tensors())
        if aside:
            write_json(aside / STATE_FILE, state)
            write_json(aside / MANIFEST_FILE, hash_files(aside))
    if engine.accelerator.is_main_process:
        folders = sorted(root.glob("step-*"))
        place = folders.index(folder)
        for unwanted in folders[: max(0, place + 1 - keep)] + folders[place + 1 :]:
            if CHECKPOINT_NAME.fullmatch(unwanted.name) and not unwanted.is_symlink():  # else it is not ours
                shutil.rmtree(unwanted)
    return folder


def _written_by_main(folder: Path, engine: Engine) -> contextlib.AbstractContextManager[Path | None]:
    """``new_directory`` on rank 0; the other ranks only take part in gathering."""
    return new_directory(folder) if engine.accelerator.is_main_process else contextlib.nullcontext()


def newest_checkpoint(root: Path, job_fingerprint: str) -> tuple[Path, RunState] | None:
    """Return the newest checkpoint of this job whose files match their manifest; damaged ones are reported and passed
    over.
    """
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
            if not isinstance(manifest, dict) or not manifest.keys() >= {
                MODEL_FILE,
                OPTIMIZER_FILE,
                STATE_FILE,
            }:
                raise StoreError(f"{MANIFEST_FILE} does not name all of its files.")
            verify_files(folder, manifest)
            state = RunState.model_validate_json((folder / STATE_FILE).read_bytes())
        except (OSError, ValueError, StoreError) as error:
            why = (
                error.problem if isinstance(error, StoreError) else error
            )  # it is not made again, whatever is deleted
            log.warning("checkpoint %s is damaged and not used: %s", folder.name, why)
            continue
        if state.job_fingerprint == job_fingerprint:
            return folder, state
        log.warning("checkpoint %s belongs to another job and is not used", folder.name)
    return None


def load_weights(folder: Path, model: nn.Module) -> None:
    """Copy ``model.safetensors`` of a folder into the model. Raises ``StoreError`` if names differ."""
    own = model_tensors(model)
    with open_tensors(folder / MODEL_FILE, own) as read, torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(read(name))
