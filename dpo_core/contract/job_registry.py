"""All steps there are, by name, and a job read from its file.

A step is declared in a module of this folder whose name ends in ``_job`` or ``jobs``, and nowhere else: its name, its
result, whether several processes run it, what it reads and writes. Its program follows by convention:
``dpo_core.steps.<name>``.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from pydantic import BaseModel
from pydantic_core import from_json

from dpo_core.contract.errors import StoreError
from dpo_core.contract.job import LARGEST_JOB_BYTES, Job
from dpo_core.contract.regular_file import read_regular

for _module in iter_modules([str(Path(__file__).parent)]):
    if _module.name.endswith(("_job", "jobs")):
        import_module(f"dpo_core.contract.{_module.name}")


def _all_kinds(kind: type[Job]) -> Iterator[type[Job]]:
    for below in kind.__subclasses__():
        yield below
        yield from _all_kinds(below)


_KINDS = {kind.step: kind for kind in _all_kinds(Job) if "step" in vars(kind)}
JOBS: dict[str, type[Job]] = dict(sorted(_KINDS.items()))
"""All steps there are, by name; their order does not depend on which module was imported first."""


class _Header(BaseModel):
    """What stands in a ``job.json`` beside the job's own fields."""

    step: str
    out_dir: Path


def read_job(path: Path) -> Job:
    """Read a ``job.json``. Raises ``StoreError`` if it is not one."""
    try:
        return _job_from_json(read_regular(path, LARGEST_JOB_BYTES))
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} is not a job file: {error}") from error


def _job_from_json(content: bytes) -> Job:
    header = _Header.model_validate_json(content)
    fields = {name: value for name, value in from_json(content).items() if name not in _Header.model_fields}
    return JOBS[header.step].model_validate(fields).at(header.out_dir)
