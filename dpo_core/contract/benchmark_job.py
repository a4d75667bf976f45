"""The step ``benchmark``: tasks of lm-evaluation-harness on one checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from dpo_core.contract.benchmark_config import BatchSize, ScoringBackEnd
from dpo_core.contract.benchmarks import LM_EVAL_VERSION, TaskScores, content_of_folder
from dpo_core.contract.chat_templates import template_content
from dpo_core.contract.job import Job, Result
from dpo_core.contract.refs import CheckpointRef, FileHashes, Location
from dpo_core.contract.section import ContentAs, NotContent, NotContentAt, Section


class TaskFolder(Section):
    """A folder of task definitions, with code and data, named by content."""

    path: Location
    content: str  # see ``content_of_folder``

    @property
    def is_unchanged(self) -> bool:
        """Whether the folder is there with the content that it is named by."""
        return self.path.is_dir() and content_of_folder(self.path) == self.content


class BenchmarkResult(Result):
    """``samples``: a folder with every document, request and answer, one file a task."""

    scores: tuple[TaskScores, ...]  # each task that was asked for, those of a group behind it
    tasks_computed: int  # the others were in the cache
    samples: Path
    samples_files: FileHashes = {}

    def file_sets(self) -> Iterator[tuple[Path, dict[str, str]]]:
        yield self.samples, self.samples_files


class BenchmarkJob(Job[BenchmarkResult]):
    """Scores of one checkpoint, task by task; those that the cache has are not computed."""

    step = "benchmark"
    is_parallel = True
    checkpoint: CheckpointRef
    template: Annotated[str | None, ContentAs(template_content)] = None  # in place of the checkpoint's own
    add_bos: Annotated[bool, NotContentAt(False)] = False
    tasks: tuple[str, ...]
    folders: tuple[TaskFolder, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    chat_template: bool = True
    max_length_tokens: int | None = None
    back_end: Annotated[ScoringBackEnd, NotContentAt("hf")] = "hf"
    batch_size: Annotated[BatchSize, NotContent()] = "auto"
    cache_dir: Location  # of all checkpoints: <cache_dir>/<task and what its score depends on>/

    def writes(self) -> tuple[Path, ...]:
        return (self.cache_dir,)

    def named_by_people(self) -> tuple[Path, ...]:
        return tuple(folder.path for folder in self.folders)

    @property
    def content(self) -> dict:
        return {**super().content, "lm_eval": LM_EVAL_VERSION}

    @property
    def score_content(self) -> dict:
        """What a task's score depends on besides the task. A field that is content enters by itself."""
        shared = {
            name: value for name, value in self.content.items() if name not in ("step", "tasks", "folders")
        }
        return shared | {"version": self.VERSION}
