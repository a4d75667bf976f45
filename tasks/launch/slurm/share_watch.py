"""One share's job, watched beside others."""

from tasks.launch.slurm.client import QueuedJob
from tasks.launch.slurm.record import Start
from tasks.launch.slurm.watch import JobWatch


class ShareWatch(JobWatch):
    """Watches one share's job; what is said of it and shown of it is the array's."""

    seen: QueuedJob | None = None

    def _tell(self, seen: QueuedJob, last: Start | None) -> None:
        pass

    def _show(self, seen: QueuedJob | None, last: Start | None = None, word: str = "") -> None:
        self.seen = seen

    def _save_position(self) -> None:
        pass
