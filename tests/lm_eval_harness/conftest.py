"""Fixtures of the tests that need lm-evaluation-harness: `make test` runs them in an environment that has it."""

from tests.dpo_core.conftest import _one_thread

__all__ = ["_one_thread"]
