"""Fixtures of the tests that need lm-evaluation-harness: `make test` runs them in an environment that has it."""

from tests.dpo_core.conftest import _one_thread
from tests.prefect_harness import prefect_server
from tests.slurm_cluster.conftest import _cluster, cluster

__all__ = ["_cluster", "_one_thread", "cluster", "prefect_server"]
