"""Whether an earlier run has done already what `pairline run` is asked for: then nothing is started, as with `make`.

Asked without Prefect and its server, whose start takes longer than all else of a run whose steps are reused. Where the
answer could depend on what others may have changed (a hub, a person's approval, a gate of another server), it is no.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from dpo_core.contract.benchmark_job import BenchmarkJob
from dpo_core.contract.data_jobs import ConvertJob, MixJob
from dpo_core.contract.errors import PairlineError
from dpo_core.contract.job import JOB_FILE, Job
from dpo_core.contract.job_registry import read_job
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.results import ENVIRONMENT_FILE
from dpo_core.contract.store import fingerprint, hash_files, verify_files
from flows.settings.stage_config import StageConfig
from tasks.checkpoint.other_tokenizer import with_tokenizer
from tasks.checkpoint.own_files import hash_named
from tasks.checkpoint.source import PACKAGE_PREFIX, locate
from tasks.data.sources import resolve_evaluation_sets, resolve_sources
from tasks.handoff.schema import read_handoff
from tasks.launch.run_job import reusable_result
from tasks.run.environment import run_environment
from tasks.run.folder import CONFIG_FILE, RunRecord, read_runs

J = TypeVar("J", bound=Job)
LARGEST_RECORD_BYTES = 16 << 20
OF_THE_CODE = ("directory", "commit", "has_local_changes", "python", "packages")


def finished_run(config: StageConfig) -> Path | None:
    """Return the folder of the newest complete run of these settings by this code, if all that it read and made is
    there, unchanged: sources, checkpoint, each step's files, what was published, the hand-off. Else None."""
    if not _is_all_here(config):
        return None
    with contextlib.suppress(PairlineError, OSError, ValueError, KeyError, TypeError, RecursionError):
        code = run_environment(config).model_dump(mode="json")  # asks git; once, however many runs there are
        if code["has_local_changes"]:
            return None
        for folder, record in reversed(read_runs(config.store.root)):
            if record.name == config.name and record.state == "completed" and _is_of(folder, config, code):
                return folder.resolve() if _is_unchanged(config, record) else None
    return None


def _is_all_here(config: StageConfig) -> bool:
    """Whether only files of this machine and the settings decide what comes out."""
    checkpoints = [
        source
        for source in (config.checkpoint.source, config.checkpoint.tokenizer, config.reference.source)
        if source
    ]
    return (
        config.upload.repo_id is None
        and config.gate.approval == "none"
        and config.judge.kind != "reward_model"  # a further checkpoint: compared rarely enough, too
        and all(
            source.startswith(PACKAGE_PREFIX) or Path(source).expanduser().is_dir() for source in checkpoints
        )
        and all(Path(name).expanduser().exists() for name in _sets(config))
    )


def _sets(config: StageConfig) -> list[str]:
    return [
        *(one.source for one in (*config.data.sources, *config.evaluation.sets)),
        *(one.source for one in config.quality.evaluation_sets),
    ]


def _is_of(folder: Path, config: StageConfig, code: dict[str, Any]) -> bool:
    """Whether the run in ``folder`` had these settings and this ``code``."""
    if json.loads(read_regular(folder / CONFIG_FILE, LARGEST_RECORD_BYTES)) != config.model_dump(mode="json"):
        return False
    then = json.loads(read_regular(folder / ENVIRONMENT_FILE, LARGEST_RECORD_BYTES))
    return all(then[name] == code[name] for name in OF_THE_CODE)


def _is_unchanged(config: StageConfig, record: RunRecord) -> bool:
    """Raises ``PairlineError``, ``OSError`` or ``KeyError`` for what is missing, which is a no as well."""
    jobs = [read_job(Path(job.folder) / JOB_FILE) for job in record.jobs]
    folders = [found.folder for found in record.jobs]
    store = config.store.root.expanduser().resolve()
    if folders != [str(job.out_dir) for job in jobs] or not all(
        Path(folder).is_relative_to(store) for folder in folders
    ):
        return False  # the store was copied or moved since
    if not all(map(reusable_result, jobs)):
        return False
    mixed = _only([job for job in jobs if not (isinstance(job, MixJob) and job.set_names)], MixJob)
    sets = [job for job in jobs if isinstance(job, MixJob) and job.set_names]
    trained = _only(jobs, TrainJob)
    if resolve_sources(config.data.sources) != mixed.sources:
        return False
    if config.evaluation.sets and resolve_sources(config.evaluation.sets) != _only(sets, MixJob).sources:
        return False
    if resolve_evaluation_sets(config.quality.evaluation_sets) != mixed.evaluation_sets:
        return False
    if not tasks_are_still(jobs) or not _is_still(config, trained.checkpoint, jobs):
        return False
    if config.reference.source and trained.reference_checkpoint != trained.checkpoint:
        return False  # a second checkpoint: two are compared rarely enough
    handoff = read_handoff(Path(record.outputs["handoff"]))
    published = handoff.checkpoint
    return published.directory is not None and hash_files(published.directory) == published.files


def tasks_are_still(jobs: Sequence[Job]) -> bool:
    """Return whether every folder of tasks has the content that benchmarks were asked by."""
    return all(folder.is_unchanged for job in jobs if isinstance(job, BenchmarkJob) for folder in job.folders)


def _only(jobs: Sequence[Job], kind: type[J]) -> J:
    found = [job for job in jobs if isinstance(job, kind)]
    if len({job.fingerprint for job in found}) != 1:
        raise KeyError(f"{len(found)} jobs of one kind")
    return found[0]


def _is_still(config: StageConfig, checkpoint: CheckpointRef, jobs: Sequence[Job]) -> bool:
    """Whether the settings' checkpoint has the contents that ``checkpoint`` was made of, and that is intact."""
    located = locate(config.checkpoint, config.store.root)
    verify_files(checkpoint.path, checkpoint.files)
    if located.weights.kind == "safetensors":
        whole = with_tokenizer(located, config.checkpoint, config.store.root)
        return whole.hashes(config.checkpoint) == checkpoint.files
    if config.checkpoint.tokenizer:
        return False  # what it is put together with is known after the conversion
    converted = [
        job for job in jobs if isinstance(job, ConvertJob) and job.gguf_file in located.weights.names
    ]
    now = fingerprint(hash_named(located.folder, list(located.weights.names)))
    return bool(converted) and converted[0].source_sha256 == now and not converted[0].pickle_files
