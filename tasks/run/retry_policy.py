"""What is worth a retry: the error's own kind says so. A retry is a resume, so a crash is; a wrong recipe is not."""

from typing import Any

from prefect.client.schemas.objects import State

from dpo_core.contract.errors import PairlineError


def worth_a_retry(task: Any, task_run: Any, state: State) -> bool:
    """Return, as Prefect's ``retry_condition_fn``, whether the failed task should be tried again.

    An error from outside the tree is a defect of ours: it would fail the same way again.
    """
    try:
        state.result(raise_on_failure=True)
    except PairlineError as error:
        return error.retryable
    except Exception:
        return False
    return False
