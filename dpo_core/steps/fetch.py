"""Step ``fetch``: a Hub data set at its commit -> its rows on disk. The only step on data that has a network and a token."""

from dpo_core.contract.data_jobs import FetchJob, FetchResult
from dpo_core.contract.progress import Progress
from dpo_core.data.sources import load_source


def run(job: FetchJob, progress: Progress) -> FetchResult:
    """Keep the rows below ``job.cache_dir``. Raises ``DataError`` for a set that cannot be read, ``RemoteError``."""
    progress.begin("fetching", total=1, unit="sources")
    rows = load_source(job.source, job.cache_dir)
    progress.advance()
    return FetchResult(job_fingerprint=job.fingerprint, rows_path=rows.folder, num_rows=len(rows))
