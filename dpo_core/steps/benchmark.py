"""Step ``benchmark``: tasks of lm-evaluation-harness on one checkpoint, one after the other.

A task that is done is a folder of the cache: a killed step goes on at the next one, and a checkpoint that many runs start
from is scored once for all of them.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import TemplateLM

from dpo_core.benchmarks.asked_tasks import AskedTask, check_version, find_tasks, working_in
from dpo_core.benchmarks.harness_model import load_harness_model
from dpo_core.benchmarks.scores import scores_of
from dpo_core.contract.benchmark_job import BenchmarkJob, BenchmarkResult
from dpo_core.contract.benchmarks import TaskScores
from dpo_core.contract.errors import OutOfMemory, StoreError, is_out_of_memory
from dpo_core.contract.progress import Progress
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.results import LARGEST_RESULT_BYTES
from dpo_core.contract.section import Section
from dpo_core.contract.store import hash_files, new_directory, write_json
from dpo_core.engine.distributed import from_main, start_accelerator
from dpo_core.engine.heartbeat import watched_ranks
from dpo_core.engine.meeting import WAIT, meet

log = logging.getLogger(__name__)
SCORES_FILE, SAMPLES_FILE = "scores.json", "samples.jsonl"


class KeptScores(Section):
    """``scores.json`` of the cache: a task's scores, or a group's with its tasks', and all that they depend on."""

    key: str
    scores: tuple[TaskScores, ...]


def run(job: BenchmarkJob, progress: Progress) -> BenchmarkResult:
    """Score what the cache lacks, and gather all."""
    check_version()
    with watched_ranks(job):
        return _score_and_gather(job, progress)


def _score_and_gather(job: BenchmarkJob, progress: Progress) -> BenchmarkResult:
    # The harness has ranks wait for each other in exchanges of its own, with unequal work.
    accelerator = start_accelerator(longest_exchange=WAIT)
    asked = find_tasks(job)
    # One looks: another run may add to the cache meanwhile, and ranks with other lists would wait for each other.
    kept = from_main(accelerator, lambda: {task.name: read_kept(job, task) for task in asked})
    missing = [task for task in asked if kept[task.name] is None]
    progress.begin("benchmark", len(asked), "tasks", done=len(asked) - len(missing))
    model = load_harness_model(job, accelerator) if missing else None
    for task in missing:
        results = _evaluate(model, task, job) if model is not None else None
        if results is not None:  # on rank 0
            kept[task.name] = keep(job, task, results)
        meet(accelerator)
        progress.advance()
    samples, files = job.out_dir / "samples", {}
    if accelerator.is_main_process:
        with new_directory(samples) as aside:
            for task in asked:
                shutil.copyfile(cache_folder(job, task) / SAMPLES_FILE, aside / f"{task.name}.jsonl")
            files = hash_files(aside)
    meet(accelerator)
    return BenchmarkResult(
        job_fingerprint=job.fingerprint,
        scores=tuple(scores for found in kept.values() if found for scores in found.scores),
        tasks_computed=len(missing),
        samples=samples,
        samples_files=files,
    )


def _evaluate(model: TemplateLM, task: AskedTask, job: BenchmarkJob) -> Mapping[str, Any] | None:
    """What the library returns, on rank 0; its own seeds, as its command line has them."""
    try:
        with working_in(task.folder):
            return lm_eval.simple_evaluate(
                model=model,
                tasks=list(task.parts),
                task_manager=task.manager,
                num_fewshot=job.num_fewshot,
                limit=job.limit,
                apply_chat_template=job.chat_template,
                fewshot_as_multiturn=job.chat_template,
                log_samples=True,
            )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"Out of memory in the task {task.name}: {str(error)[:200]}. Lower benchmarks.batch_size, or "
            "benchmarks.max_length_tokens."
        ) from error


def cache_folder(job: BenchmarkJob, task: AskedTask) -> Path:
    """Return where a task's scores are kept."""
    return job.cache_dir / task.key[:16]


def read_kept(job: BenchmarkJob, task: AskedTask) -> KeptScores | None:
    """Return what an earlier run kept of a task; None if there is nothing, or nothing that can be read."""
    folder = cache_folder(job, task)
    try:
        kept = KeptScores.model_validate_json(read_regular(folder / SCORES_FILE, LARGEST_RESULT_BYTES))
    except (OSError, ValueError):  # StoreError is a ValueError
        return None
    return kept if kept.key == task.key and (folder / SAMPLES_FILE).is_file() else None


def keep(job: BenchmarkJob, task: AskedTask, results: Mapping[str, Any]) -> KeptScores:
    """Write a task's scores, and what was asked and answered, to the cache, and return them. What another run has kept of it
    meanwhile is left alone, as that run may be reading it, and returned."""
    if (theirs := read_kept(job, task)) is not None:
        return theirs
    kept = KeptScores(key=task.key, scores=scores_of(task.name, results))
    for scores in kept.scores:
        if scores.part_of is None and scores.metrics:
            log.info("%s: %s %.4f", scores.task, scores.metrics[0].name, scores.metrics[0].value)
    try:
        with new_directory(cache_folder(job, task)) as aside:
            with (aside / SAMPLES_FILE).open("w") as file:
                for name, samples in results["samples"].items():
                    for sample in samples:
                        file.write(json.dumps({"task": name, **sample}, default=_plain) + "\n")
            write_json(aside / SCORES_FILE, kept)
    except StoreError:  # the other run may have put its folder there at this very moment
        if (theirs := read_kept(job, task)) is None:
            raise
        return theirs
    return kept


def _plain(value: Any) -> Any:
    """NumPy's scalars as numbers, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)
