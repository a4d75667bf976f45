"""`pairline prepare`, `show-rows`: what comes before the training, alone. Prefect is imported when one runs."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpo_core.contract.importing import importing
from dpo_core.contract.visible import one_line
from flows.settings.overrides import read_recipe
from flows.terminal.recipe_options import Overrides, Recipe
from flows.terminal.run_here import run_flow
from tasks.text.terminal import say


def prepare(
    recipe: Recipe,
    set_: Overrides = [],  # noqa: B006
    reference: Annotated[
        bool, typer.Option("--reference", help="Compute the reference's log-probabilities, too.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Also write the results as a tar file, for `pairline run --from` with another store."
        ),
    ] = None,
) -> None:
    """Fetch and mix, on a host that need not be the trainer's: a run that shares the store finds it all done."""
    config = read_recipe(recipe, set_)
    from flows.serve.local_prefect import start_prefect

    wait_for_server = start_prefect(config.store.root)
    with importing():
        from flows.audience import followed
        from flows.prepare import NEXT, prepare_stage
        from tasks.run.bundle import write_bundle
        from tasks.run.folder import read_run

    wait_for_server()
    body = partial(prepare_stage, reference)
    console = Console()
    folder = run_flow(
        lambda audience: followed("dpo-prepare", body, audience)(config), console, lambda *_: None
    )
    record = read_run(folder)
    made = [Path(job.folder) for job in record.jobs]
    for path in made:
        say(one_line(f"ready: {path}"))
    if following := record.outputs.get(NEXT):
        say(one_line(f"next: {following} (pairline job-spec {recipe} --for ENGINE --job {following})"))
    if export is not None:
        count = write_bundle(export, config.store.root, made)
        say(
            one_line(
                f"written: {export} ({count} results). On the other host: pairline run {recipe} --from {export.name}"
            )
        )


def take_in(bundle: Path, store_root: Path) -> None:
    """Take the results of a bundle into a store, and say which."""
    from tasks.run.bundle import read_bundle

    for line in read_bundle(bundle, store_root):
        say(one_line(f"bundle: {line}"))


def show_rows(
    recipe: Recipe,
    count: Annotated[int, typer.Option("--n", min=1, max=20, help="How many pairs.")] = 3,
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Show pairs as the trainer sees them: what the chat template made of them, and which tokens are trained."""
    from flows.terminal.show_rows import show_rows as show

    show(read_recipe(recipe, set_), count, Console())
