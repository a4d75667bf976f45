"""Task: a checkpoint's scores on tasks of lm-evaluation-harness."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.benchmark_config import BenchmarkConfig
from dpo_core.contract.benchmark_job import BenchmarkJob, BenchmarkResult, TaskFolder
from dpo_core.contract.benchmarks import Benchmarks, content_of_folder
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.warning_signs import WarningBounds
from tasks.checkpoint.chosen_template import ChosenTemplate
from tasks.gate.signs import signs_in
from tasks.launch.workplace import Workplace
from tasks.run.retry_policy import worth_a_retry


# Retried because tasks may take hours: those that are done are kept, so a retry goes on at the next one.
@task(
    name="benchmark",
    retries=3,
    retry_delay_seconds=[5, 30, 90],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def benchmark(
    benchmarks: BenchmarkConfig, checkpoint: CheckpointRef, chosen: ChosenTemplate, place: Workplace
) -> BenchmarkResult:
    """Run step ``benchmark``. Raises ``ConfigError`` for a name that no task has, ``DataError`` for data that cannot be
    loaded."""
    result = place.run(
        BenchmarkJob(
            checkpoint=checkpoint,
            template=chosen.template,
            add_bos=chosen.add_bos,
            tasks=benchmarks.tasks,
            folders=tuple(map(pinned_folder, benchmarks.task_folders)),
            limit=benchmarks.limit,
            num_fewshot=benchmarks.num_fewshot,
            chat_template=benchmarks.chat_template,
            max_length_tokens=benchmarks.max_length_tokens,
            back_end=benchmarks.back_end,
            batch_size=benchmarks.batch_size,
            cache_dir=place.store / "benchmark-scores",
        )
    )
    get_run_logger().info(
        "%s: %s",
        checkpoint.source,
        ", ".join(
            f"{score.task} {score.metrics[0].value:.4f}" for score in result.scores if not score.part_of
        ),
    )
    return result


def pinned_folder(folder: Path) -> TaskFolder:
    """Return a folder of tasks with what names its content. Raises ``ConfigError`` where there is none."""
    path = folder.expanduser().resolve()
    if not path.is_dir():
        raise ConfigError(
            f"benchmarks.task_folders names {path}, which is no folder. Give one with task definitions."
        )
    return TaskFolder(path=path, content=content_of_folder(path))


def warn_of_falls(
    bounds: WarningBounds,
    evaluation: EvaluateResult,
    benchmarks: Benchmarks | None,
    judgement: JudgeFigures | None = None,
) -> None:
    """Log the sign that tasks and a judge add to those of the evaluation, which were logged before."""
    known = signs_in(bounds, evaluation)
    for sign in signs_in(bounds, evaluation, benchmarks, judgement):
        if sign not in known:
            get_run_logger().warning(sign.words)
