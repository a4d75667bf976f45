"""`pairline export`: what a step of a run has learnt, as a folder that stock transformers loads."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from dpo_core.contract.errors import ConfigError, from_os_error
from dpo_core.contract.visible import one_line
from flows.settings.overrides import validated
from flows.terminal.server_commands import Store
from tasks.text.terminal import say


def export(
    run_name: Annotated[
        str, typer.Option("--run", help="A run's folder name in the store, its path, `last`, or `last~1`.")
    ] = "last",
    step: Annotated[
        str,
        typer.Option(
            help="A number of optimizer steps whose checkpoint is kept, or best. Empty: what came out."
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Also copy it to this folder, which must not exist.")
    ] = None,
    store: Store = Path(".pairline"),
) -> None:
    """Write the weights of any step that is kept, also of a run that goes on or failed, as a folder for transformers."""
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists. Give --out a folder that does not.")
    path, number = export_step(run_name, step, store)
    if out is not None:
        try:
            path = Path(shutil.copytree(path, out))
        except OSError as error:
            raise from_os_error(error, f"copying the export to {out}") from error
    say(one_line(f"step {number}: {path}"))


def export_step(run_name: str, step: str, store: Path) -> tuple[Path, int]:
    """Run step ``export`` here, as a process, on a run's weights. -> the checkpoint's folder and whose step it is"""
    from tasks.checkpoint.chosen_template import chosen_template
    from tasks.launch.process import ProcessLauncher
    from tasks.launch.workplace import Workplace
    from tasks.run.files import read_run_files
    from tasks.run.find import find_run
    from tasks.run.kept_step import kept_step
    from tasks.train_dpo import export_job

    run = read_run_files(find_run(run_name, store))
    of_stage = {name: section for name, section in run.config.items() if name != "sweep"}
    kept, config = kept_step(run, step), validated(of_stage, f"the settings of {run.folder.name}")
    template = chosen_template(config.checkpoint)
    place = Workplace(run.folder.parent.parent, ProcessLauncher(config.compute))
    weights = (kept.folder, kept.weights_fingerprint)
    made = place.run(export_job(weights, kept.job.checkpoint, kept.job.adapter, config.train, template))
    return made.path, kept.step
