"""Task: the gate's rules as a box of their own in the run's graph, red where one does not hold."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.errors import GateFailed
from tasks.gate.rules import GateCheck, failed_checks
from tasks.run.retry_policy import worth_a_retry
from tasks.show.artifacts import show_gate


# Not retried: the same numbers would fail again.
@task(name="gate", retries=0, retry_condition_fn=worth_a_retry, cache_policy=NO_CACHE, persist_result=False)
def check_gate(checks: tuple[GateCheck, ...], candidate: str, family: str) -> None:
    """Show the table ``<family>-gate``. Raises ``GateFailed`` that names every rule that does not hold."""
    show_gate(checks, family)
    if failed := failed_checks(checks):
        raise GateFailed(
            f"The checkpoint does not pass the gate: {failed}. It is neither uploaded nor handed off, and "
            f"stays at {candidate}. Change the training or the data, or gate bounds that ask too much."
        )
