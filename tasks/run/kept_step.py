"""The weights of a step of a run that are still there: what its training gave out, or one of its checkpoints."""

import re
from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.bounded_json import bounded_json
from dpo_core.contract.checkpoint_files import RUN_MANIFEST, RUN_WEIGHTS, files_of
from dpo_core.contract.errors import ConfigError, StoreError
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.keep_best import best_of
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.results import LARGEST_RESULT_BYTES
from dpo_core.contract.store import fingerprint, verify_files
from tasks.run.files import RunFiles, moved

CHECKPOINT = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class KeptStep:
    """Weights of a run after ``step`` optimizer steps, verified; ``job``: the training, its checkpoint where that is now."""

    job: TrainJob
    step: int
    folder: Path
    weights_fingerprint: str


def kept_step(run: RunFiles, asked: str) -> KeptStep:
    """Return the weights of the step that is ``asked`` for: a number, ``best``, or nothing for what training gave out.

    Raises ``ConfigError`` that names the steps that are there, ``StoreError`` if its files are damaged.
    """
    files = run.steps.get("train")
    if files is None or not isinstance(files.job, TrainJob):
        raise ConfigError(
            f"The run {run.folder.name} has come to no training, so it has no weights to export."
        )
    store = run.folder.parent.parent
    checkpoint = files.job.checkpoint.with_paths(lambda path: moved(path, store))
    job = files.job.model_copy(update={"checkpoint": checkpoint})
    folders = {
        int(found[1]): path
        for path in sorted((files.folder / "checkpoints").glob("step-*"))
        if (found := CHECKPOINT.fullmatch(path.name))
    }
    given_out = None
    if run.trained:
        given_out = run.trained.best.step if run.trained.best else run.trained.steps
    wanted = _wanted(run, job, asked, given_out)
    if run.trained and wanted is not None and wanted == given_out:
        return KeptStep(
            job, wanted, files.folder / run.trained.weights_path.name, run.trained.weights_fingerprint
        )
    if wanted is None or wanted not in folders:
        there = sorted({*folders, *([given_out] if given_out else [])})
        raise ConfigError(
            f"The run {run.folder.name} has no weights of step {wanted or '(its last)'} any more. There are those of: "
            f"{', '.join(map(str, there)) or 'none'}. train.keep_checkpoints says how many stay."
        )
    return KeptStep(job, wanted, folders[wanted], _verified(folders[wanted]))


def _wanted(run: RunFiles, job: TrainJob, asked: str, given_out: int | None) -> int | None:
    """The number of the step that is asked for."""
    if asked.isdecimal():
        return int(asked)
    if not asked:
        return given_out
    if asked != "best":
        raise ConfigError(f"--step {asked}: expected the number of a step, or best.")
    keep = job.train.keep_best
    best = best_of(keep, run.evaluations, 0) if keep else None
    if best is None:
        raise ConfigError(
            f"The run {run.folder.name} has no best step: train.keep_best is not set, or nothing was evaluated yet."
        )
    return best.step


def _verified(folder: Path) -> str:
    """The fingerprint of a checkpoint's weights, which match its manifest."""
    try:
        manifest = bounded_json(read_regular(folder / RUN_MANIFEST, LARGEST_RESULT_BYTES))
        hashes = {path.name: str(manifest[path.name]) for path in files_of(folder, RUN_WEIGHTS)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"The checkpoint {folder} is damaged: {error}.", "Export another step.") from error
    verify_files(folder, hashes)
    return fingerprint(sorted(hashes.items()))
