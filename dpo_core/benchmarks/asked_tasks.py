"""The tasks that a job names, found and loaded with their data before any model is: what is wrong shows at once.

What a score depends on is named by content: the task's configuration, the folder that it comes from, and its documents,
wherever those were loaded from.
"""

import contextlib
import difflib
import importlib.metadata
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from dpo_core.contract.benchmark_job import BenchmarkJob, TaskFolder
from dpo_core.contract.benchmarks import LM_EVAL_VERSION
from dpo_core.contract.errors import ConfigError, DataError, PairlineError
from dpo_core.contract.store import fingerprint

log = logging.getLogger(__name__)
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function, another in each process
LONGEST_CAUSE = 500  # characters of another library's error


@dataclass(frozen=True, slots=True)
class AskedTask:
    """A task or group, ready to be run in ``folder``. ``key``: all that its score depends on, as one hash."""

    name: str
    parts: tuple[Task | Group, ...]  # as lm-evaluation-harness takes them
    manager: TaskManager  # which it would make anew otherwise, out of ten thousand files
    folder: Path
    key: str


def check_version() -> None:
    """Raise ``ConfigError`` unless lm-evaluation-harness is the version that scores are compared in."""
    try:
        found = importlib.metadata.version("lm-eval")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != LM_EVAL_VERSION:
        raise ConfigError(
            f"Scores are those of lm-eval {LM_EVAL_VERSION}, and {found} is installed where this step runs: another version "
            "counts otherwise.",
            "Install requirements/benchmarks.txt there (`make setup EXTRAS=benchmarks`).",
        )


def vllm_version() -> str:
    """Return it: what it computes is its version's. Raises ``ConfigError`` where there is none."""
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "benchmarks.back_end is vllm, and no vLLM is installed where this step runs.",
            "Install it there, or set benchmarks.back_end to hf.",
        ) from None


def find_tasks(job: BenchmarkJob) -> tuple[AskedTask, ...]:
    """Return the job's tasks, in its order. Raises ``ConfigError`` for a name that no task has, ``DataError`` for data
    that cannot be loaded."""
    for folder in job.folders:
        if not folder.is_unchanged:
            raise DataError(
                f"{folder.path} has changed since this run began, and with it what its tasks ask. Start the run again."
            )
    manager = _manager(job)
    return tuple(_find(name, job, manager) for name in job.tasks)


def _manager(job: BenchmarkJob) -> TaskManager:
    """With the library's own tasks only if they are needed: they are ten thousand files, which take seconds."""
    folders = [str(folder.path) for folder in job.folders]
    own = TaskManager(include_path=folders, include_defaults=False) if folders else None
    if own is not None and all(_is_complete(name, own) for name in job.tasks):
        return own
    manager = TaskManager(include_path=folders or None)
    for name in job.tasks:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=5)
            raise ConfigError(
                f"benchmarks.tasks names {name}, which is no task of lm-eval {LM_EVAL_VERSION}"
                + (" or of benchmarks.task_folders" if folders else "")
                + (f". Near it: {', '.join(near)}." if near else "."),
                "`python -m lm_eval ls tasks` lists them.",
            )
    return manager


def _is_complete(name: str, manager: TaskManager) -> bool:
    """Whether a folder's index has the name, and what a group of that name consists of."""
    entry = manager.task_index.get(name)
    if entry is None:
        return False
    inner = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else None
    return all(isinstance(child, str) and child in manager.task_index for child in inner or ())


def _find(name: str, job: BenchmarkJob, manager: TaskManager) -> AskedTask:
    own = _own_folder(name, job, manager)
    folder = job.out_dir if own is None else own.path
    with working_in(folder):
        try:
            loaded = manager.load([name])
            tasks: dict[str, Task] = loaded["tasks"]
            documents = {leaf: _content_of_documents(task, job) for leaf, task in tasks.items()}
        except PairlineError:
            raise
        except Exception as error:  # of whatever library reads the data
            raise DataError(
                f"The task {name} could not be loaded with its data: {type(error).__name__}: {str(error)[:LONGEST_CAUSE]}",
                "A step in a container or cluster job has no network, so a Hub set that is not in its cache cannot be "
                "loaded. Put the data beside a task definition of your own (docs/benchmarks.md).",
            ) from error
    for leaf, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(
                f"The task {leaf} runs code that the model writes, which Pairline does not allow. Leave it out."
            )
    groups = loaded.get("groups") or {}
    return AskedTask(
        name=name,
        parts=(groups[name],) if name in groups else tuple(tasks.values()),
        manager=manager,
        folder=folder,
        key=fingerprint(
            {
                **job.score_content,
                "task": name,
                "folder": own.content if own else None,
                "tasks": {leaf: _configuration(task) for leaf, task in tasks.items()},
                "documents": documents,
                **({"vllm": vllm_version()} if job.back_end == "vllm" else {}),
            }
        ),
    )


def _own_folder(name: str, job: BenchmarkJob, manager: TaskManager) -> TaskFolder | None:
    """The user's folder that a task's definition lies in; None for one of the library's."""
    path = manager.task_index[name].yaml_path
    inside = (
        folder
        for folder in job.folders
        if path and Path(path).resolve().is_relative_to(folder.path.resolve())
    )
    return next(inside, None)


def _configuration(task: Task) -> str:
    config = {name: value for name, value in task.dump_config().items() if name != "metadata"}
    return ADDRESS.sub("", json.dumps([task.VERSION, config], sort_keys=True, default=str))


def _content_of_documents(task: Task, job: BenchmarkJob) -> str:
    """One hash of all documents that are asked about, and of those that examples are taken from."""
    hashed = sha256()
    for document in _first(task.eval_docs, job.limit):
        hashed.update(_line(document))
    shots = task.config.num_fewshot if job.num_fewshot is None else job.num_fewshot
    if shots:
        for document in task.fewshot_docs():
            hashed.update(_line(document))
    return hashed.hexdigest()


def _first(documents: Iterable[Any], limit: int | None) -> Iterator[Any]:
    for number, document in enumerate(documents):
        if limit is not None and number >= limit:
            return
        yield document


def _line(document: Mapping[str, Any] | Sequence[Any]) -> bytes:
    return ADDRESS.sub("", json.dumps(document, sort_keys=True, default=str)).encode() + b"\n"


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Be in a task's folder, where its relative paths lead somewhere, and leave no bytecode there."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        sys.dont_write_bytecode = before
