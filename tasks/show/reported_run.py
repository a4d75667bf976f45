"""A recorded run that leaves its report whatever its end, and tells Prefect of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from tasks.report.markdown import render_markdown
from tasks.report.page import REPORT_FILE, write_report
from tasks.run.folder import OnTask, RunFolder, read_run, recorded_run
from tasks.show.artifacts import artifact_key, markdown_artifact, never_fails
from tasks.show.assets import emit_assets
from tasks.show.run_log import make_logs_visible


@contextmanager
def reported_run(
    store_root: Path,
    name: str,
    config: BaseModel,
    flow_run_id: str | None = None,
    on_task: OnTask | None = None,
) -> Iterator[RunFolder]:
    """Do what ``recorded_run`` does, and at its end the page, the artifact ``<name>-report`` and the assets; none of
    them can fail it.
    """
    make_logs_visible()
    folder: Path | None = None
    try:
        with recorded_run(store_root, name, config, flow_run_id, on_task) as run:
            folder = run.folder
            yield run
    finally:
        if folder is not None:
            show_report(folder)
            emit_assets(folder)


@never_fails
def show_report(folder: Path) -> None:
    """Write ``report.html`` from the run's files as they are now, and show the same as an artifact."""
    page = write_report(folder)
    markdown_artifact(
        render_markdown(page),
        artifact_key("report", read_run(folder).name),
        f"{folder.name}: {page.badge[0]}. As a file: {folder / REPORT_FILE}",
    )
