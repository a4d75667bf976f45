"""Fixtures of the tests that need OLMo-core: `make test` runs them in an environment of their own."""

from tests.dpo_core.conftest import _one_thread, stage

__all__ = ["_one_thread", "stage"]
