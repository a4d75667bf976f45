"""Training checkpoints: complete or not there, verified when read, no pickle.

    checkpoints/step-00000040/   model.safetensors   optimizer.safetensors   state.json   manifest.json (sha256 per file)

``step`` is the number of finished optimizer steps, so the run goes on with step ``step`` (0-based).
"""

import json
import logging
import shutil
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import nn

from dpo_core.errors import StoreError
from dpo_core.store import hash_files, new_directory, verify_files, write_json

log = logging.getLogger(__name__)

MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"


class RunState(BaseModel):
    """What a run knows besides tensors."""

    model_config = ConfigDict(frozen=True)

    step: int
    job_fingerprint: str
    guard: dict[str, float] = {}
    first_metrics: dict[str, float] = {}


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and persistent buffer once; tied weights appear under their first name."""
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: t.detach().contiguous() for name, t in (dict(model.named_parameters()) | buffers).items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {f"{name}::{key}": value.detach().contiguous() for name, parameter in model.named_parameters()
            for key, value in optimizer.state.get(parameter, {}).items()}


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        state = {key.partition("::")[2]: value for key, value in tensors.items() if key.partition("::")[0] == name}
        if state:
            # The fused kernel wants its step counter on the parameter's device, too.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def save_weights(folder: Path, model: nn.Module) -> dict[str, str]:
    """Write the model's tensors and a manifest as ``folder``, atomically. Returns sha256 per file."""
    with new_directory(folder) as aside:
        save_file(model_tensors(model), aside / MODEL_FILE, metadata={"format": "pt"})
        hashes = hash_files(aside)
        write_json(aside / MANIFEST_FILE, hashes)
    return hashes


def save_checkpoint(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState, keep: int) -> Path:
    """Write a checkpoint and delete all but the newest ``keep``.

    A later one than this is damaged or of another job, else the run would have gone on from it: it goes, too.
    """
    folder = root / f"step-{state.step:08d}"
    with new_directory(folder) as aside:
        save_file(model_tensors(model), aside / MODEL_FILE, metadata={"format": "pt"})
        save_file(_optimizer_tensors(model, optimizer), aside / OPTIMIZER_FILE)
        write_json(aside / STATE_FILE, state)
        write_json(aside / MANIFEST_FILE, hash_files(aside))
    folders = sorted(root.glob("step-*"))
    place = folders.index(folder)
    for unwanted in folders[: max(0, place + 1 - keep)] + folders[place + 1 :]:
        shutil.rmtree(unwanted)
    return folder


def newest_checkpoint(root: Path, job_fingerprint: str) -> tuple[Path, RunState] | None:
    """The newest checkpoint of this job whose files match their manifest; damaged ones are reported and passed over."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            verify_files(folder, json.loads((folder / MANIFEST_FILE).read_bytes()))
            state = RunState.model_validate_json((folder / STATE_FILE).read_bytes())
        except (OSError, ValueError, StoreError) as error:
            log.warning("checkpoint %s is damaged and not used: %s", folder.name, error)
            continue
        if state.job_fingerprint == job_fingerprint:
            return folder, state
        log.warning("checkpoint %s belongs to another job and is not used", folder.name)
    return None


def load_weights(folder: Path, model: nn.Module) -> None:
    """Copy ``model.safetensors`` of a folder into the model. Raises ``StoreError`` if names differ."""
    tensors, own = load_file(folder / MODEL_FILE), model_tensors(model)
    if tensors.keys() != own.keys():
        raise StoreError(f"{folder} holds other tensors than the model: {sorted(tensors.keys() ^ own.keys())[:5]}.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore model and optimizer from a folder that ``newest_checkpoint`` verified."""
    load_weights(folder, model)
    _restore_optimizer(model, optimizer, load_file(folder / OPTIMIZER_FILE))
