"""Where the reference pass keeps its values: of the trainer, which fills it, and of the orchestrator, which looks whether
something is there."""

from pathlib import Path

from dpo_core.contract.jobs import ReferenceJob
from dpo_core.contract.store import fingerprint

SHARDS = "shard-*.npz"


def model_cache_folder(job: ReferenceJob) -> Path:
    """Return the cache folder of this model, these numerics and this version of the step."""
    return job.cache_dir / fingerprint(job.scores_content)[:16]
