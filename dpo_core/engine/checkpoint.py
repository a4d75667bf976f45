"""Training checkpoints: complete or not there, verified when read, no pickle.

    checkpoints/step-00000040/   model.safetensors   optimizer.safetensors   state.json   manifest.json (sha256 per file)

Several processes each write a part: ``model.part-00001-of-00002.safetensors`` and so on. What was written by any number of
them, by any back end, is read by any other. ``step`` is the number of finished optimizer steps, so the run goes on with
step ``step`` (0-based).
"""

import json
import logging
import re
import shutil
import socket
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict
from torch import nn

from dpo_core.contract.checkpoint_files import (
    RUN_MANIFEST,
    RUN_OPTIMIZER,
    RUN_STATE,
    RUN_WEIGHTS,
    files_of,
    is_complete,
)
from dpo_core.contract.errors import StepCrashed, StoreError
from dpo_core.contract.store import find_damage, verify_files
from dpo_core.engine.distributed import by_every_rank, from_main
from dpo_core.model.tensor_slices import open_slices

log = logging.getLogger(__name__)

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
    num_tokens: int = 0  # of both sides of all pairs so far
    best_step: int = 0  # of the best evaluation so far, whose checkpoint stays; 0: none is chosen

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
    return {name: tensor.detach() for name, tensor in stored_tensors(model).items()}


def checkpoint_folder(root: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return root / f"step-{step:08d}"


def keep_newest(root: Path, folder: Path, keep: int, best_step: int = 0) -> None:
    """Delete all checkpoints but ``folder`` and the newest ones before it, ``keep`` in all, and that of ``best_step``.

    A later one than this is damaged or of another job, else the run would have gone on from it: it goes, too. What cannot be
    deleted now is told of, and tried again after the next checkpoint.
    """
    folders = sorted(root.glob("step-*"))
    place, best = folders.index(folder), checkpoint_folder(root, best_step)
    for unwanted in folders[: max(0, place + 1 - keep)] + folders[place + 1 :]:
        if unwanted == best and best_step:
            continue
        if CHECKPOINT_NAME.fullmatch(unwanted.name) and not unwanted.is_symlink():  # else it is not ours
            try:
                shutil.rmtree(unwanted)
            except OSError as error:  # somebody else's file appeared in it, an NFS server keeps an open one
                log.warning("%s could not be deleted: %s", unwanted, error)


def newest_checkpoint(
    root: Path, job_fingerprint: str, accelerator: Accelerator | None = None, before: int | None = None
) -> tuple[Path, RunState] | None:
    """Return the newest checkpoint of this job whose files match their manifest, of a step ``before`` that if given;
    damaged ones are reported and passed over.

    With an accelerator all ranks look together: rank 0 at the folder, each at its share of the files' content.
    """
    names = from_main(accelerator, lambda: sorted(folder.name for folder in root.glob("step-*")))
    for folder in (root / name for name in reversed(names)):
        if before is not None and folder >= checkpoint_folder(root, before):
            continue
        if state := whole_checkpoint(folder, job_fingerprint, accelerator):
            return folder, state
    return None


def whole_checkpoint(
    folder: Path, job_fingerprint: str, accelerator: Accelerator | None = None
) -> RunState | None:
    """Return the state of a checkpoint of this job whose files match their manifest; another is reported."""
    found = from_main(accelerator, partial(_described, folder))
    problem = found if isinstance(found, str) else _damage(folder, found[0], accelerator)
    if isinstance(found, str) or problem:
        log.warning("checkpoint %s is damaged and not used: %s", folder.name, problem)
        return None
    if found[1].job_fingerprint == job_fingerprint:
        return found[1]
    log.warning("checkpoint %s belongs to another job and is not used", folder.name)
    return None


def _described(folder: Path) -> tuple[dict[str, str], RunState] | str:
    """The manifest and the state of a checkpoint, or what is wrong with them."""
    try:
        manifest = json.loads((folder / RUN_MANIFEST).read_bytes())
        named = isinstance(manifest, dict) and RUN_STATE in manifest
        if not named or not all(is_complete(file, manifest) for file in (RUN_WEIGHTS, RUN_OPTIMIZER)):
            return f"{RUN_MANIFEST} does not name all of its files."
        verify_files(folder, {RUN_STATE: manifest[RUN_STATE]})
        return manifest, RunState.model_validate_json((folder / RUN_STATE).read_bytes())
    except (OSError, ValueError, StoreError) as error:
        return _problem(error)


def _damage(folder: Path, manifest: dict[str, str], accelerator: Accelerator | None) -> str:
    """What is wrong with the files of a checkpoint; nothing if they match. Each rank reads its share of them.

    Raises ``StepCrashed``, on all ranks, for a file that rank 0 can read and another could not: a checkpoint that was passed
    over would be deleted.
    """

    def look(rank: int, ranks: int) -> tuple[str, str] | None:
        mine = sorted(manifest)[rank::ranks]
        if damage := find_damage(folder, {name: manifest[name] for name in mine}):
            return damage[0], f"rank {rank} on {socket.gethostname()}: {_words_of(damage)}"
        return None

    found = next(filter(None, by_every_rank(accelerator, look)), None)
    if found is None:
        return ""
    name, words = found
    if problem := from_main(accelerator, lambda: _words_of(find_damage(folder, {name: manifest[name]}))):
        return problem
    raise StepCrashed(
        f"{name} of the checkpoint {folder.name} is whole, and not everybody could read it. {words}",
        "The store must be on a file system that all nodes share; if it is, it showed the file late, or failed. The step is "
        "started again.",
    )


def _words_of(damage: tuple[str, StoreError | OSError] | None) -> str:
    if damage is None:
        return ""
    name, error = damage
    return _problem(error) if isinstance(error, StoreError) else f"{name}: {error}"


def _problem(error: Exception) -> str:
    # Without its advice: the checkpoint is not made again, whatever is deleted.
    return error.problem if isinstance(error, StoreError) else str(error)


def load_weights(folder: Path, model: nn.Module) -> None:
    """Copy the weights of a folder into a model that is whole here. Raises ``StoreError`` if names differ."""
    own = model_tensors(model)
    with open_slices(files_of(folder, RUN_WEIGHTS), own) as slices:
        for name, tensor in own.items():
            slices.fill(name, tensor)
