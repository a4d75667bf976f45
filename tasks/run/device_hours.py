"""What a run's result took of the devices: the hours of every step that computes on them, times its processes."""

from pathlib import Path

from dpo_core.contract.job_registry import JOBS
from tasks.run.files import RunFiles, moved, read_step


def device_hours(run: RunFiles) -> dict[str, float]:
    """Return step -> hours, of the jobs that have ended: what each took when it was computed, also by an earlier run. Of a
    step that was resumed the last start counts, of a training all steps."""
    found: dict[str, float] = {}
    for name, folder in dict.fromkeys((job.step, job.folder) for job in run.record.jobs):
        if not JOBS[name].is_parallel:
            continue
        step = read_step(name, moved(Path(folder), run.folder.parent.parent))
        if step.result is None or step.environment is None:
            continue
        seconds = step.result.seconds
        if run.steps[name].folder == step.folder and name == "train":
            seconds = max(seconds, run.metrics.total("step_seconds"))
        found[name] = found.get(name, 0.0) + seconds * step.environment.num_processes / 3600
    return found
