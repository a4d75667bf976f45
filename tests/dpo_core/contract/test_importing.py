"""No collection looks through what is imported: not while it is imported, and not later."""

import gc
import subprocess
import sys

import pytest

from dpo_core.contract.importing import importing

IN_A_NEW_PROCESS = """
import gc
from dpo_core.contract.importing import importing

gc.collect()
collections = sum(generation["collections"] for generation in gc.get_stats())
with importing():
    made = [[] for _ in range(100_000)]
assert sum(generation["collections"] for generation in gc.get_stats()) == collections
assert gc.isenabled()
assert gc.get_freeze_count() > len(made)

later = []
later.append(later)
with importing():
    del later
frozen = gc.get_freeze_count()
assert gc.collect() >= 1, "what was garbage when a later block ended is never freed"
assert gc.get_freeze_count() == frozen
"""


def test_what_is_made_meanwhile_is_looked_through_neither_then_nor_later() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr


def test_collections_go_on_after_an_import_that_fails() -> None:
    with pytest.raises(ModuleNotFoundError), importing():
        import pairline_has_no_such_module  # noqa: F401
    assert gc.isenabled()


def test_who_has_switched_collections_off_keeps_them_off() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
