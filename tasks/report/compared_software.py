"""What a run was made with: commit, machine, versions."""

from tasks.run.files import RunFiles


def software_of(run: RunFiles) -> dict[str, str]:
    """Return name -> version, commit, device."""
    found: dict[str, str] = {}
    for step in run.steps.values():
        if step.environment:
            trained_on = {"trained on": step.environment.device}
            found |= {
                **step.environment.packages,
                **trained_on,
                "processes": str(step.environment.num_processes),
            }
    if run.environment:
        found |= {
            "commit": (run.environment.commit or "")[:16],
            "python": run.environment.python,
            **run.environment.packages,
        }
    return found
