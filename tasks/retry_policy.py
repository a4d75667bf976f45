"""What is worth a retry: errors that another attempt can mend (``PairlineError.retryable``), and nothing else."""

from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from dpo_core.errors import PairlineError


def worth_a_retry(task: Task, task_run: TaskRun, state: State[Any]) -> bool:
    """A task's ``retry_condition_fn``: a preemption, a server that did not answer, a step that died without a word."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, PairlineError) and error.retryable
