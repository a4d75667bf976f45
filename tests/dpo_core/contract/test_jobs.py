"""What a job class must say of itself for its results to be believed."""

import pytest
from pydantic import BaseModel

from dpo_core.contract.job import Job, Result
from dpo_core.contract.job_registry import JOBS

# Its rows lie in the cache, whose files `mix` looks at itself; nothing else is given them to read.
WITHOUT_HASHES = {"fetch"}


def names_paths(model: type[BaseModel]) -> bool:
    """Whether a value of the model, or of one inside it, holds a path."""
    return "Path" in str(model.model_fields) or any(
        isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and names_paths(field.annotation)
        for field in model.model_fields.values()
    )


@pytest.mark.parametrize("job", [pytest.param(job, id=step) for step, job in JOBS.items()])
def test_a_result_that_names_files_says_which_hashes_they_have(job: type[Job]):
    """What ``file_sets`` does not name is verified by nobody."""
    result = job.result_class()
    hashes = result.file_sets is not Result.file_sets
    assert hashes == (names_paths(result) and job.step not in WITHOUT_HASHES)
