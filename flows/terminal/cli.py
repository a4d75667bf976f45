"""The command line: ``pairline run recipe.yaml --set loss.beta=0.2``, ``plan``, ``schema``, ``status``, ..."""

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpo_core.contract.errors import PairlineError
from dpo_core.contract.importing import importing
from dpo_core.contract.visible import one_line
from flows.settings.overrides import read_recipe
from flows.terminal import server_commands as serve_commands
from flows.terminal.data_commands import prepare, show_rows
from flows.terminal.export_command import export
from flows.terminal.handoff_commands import intake, signing_key
from flows.terminal.job_spec_command import job_spec
from flows.terminal.look_commands import compare, report, status, watch
from flows.terminal.plan_command import plan
from flows.terminal.recipe_options import Overrides, Recipe
from flows.terminal.run_here import run_flow, run_stage, show_end
from flows.terminal.server_commands import Store
from tasks.text.terminal import say

EXIT_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pairline: the DPO stage of LLM post-training. SFT checkpoint and preference data in, a "
    "verified checkpoint out that an RLVR run can start from.",
)


@app.command()
def run(
    recipe: Recipe,
    set_: Overrides = [],  # noqa: B006 (typer reads the default, nobody changes it)
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Run the flow also where an earlier run of these settings has "
            "done it all, and nothing of it has changed since.",
        ),
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option("--from", help="What `pairline prepare --export` wrote, to take into the store."),
    ] = None,
) -> None:
    """Run the stage; steps whose results are in the store are reused."""
    config = read_recipe(recipe, set_)
    if bundle is not None:
        from flows.terminal.data_commands import take_in

        take_in(bundle, config.store.root)
    from flows.serve.local_prefect import has_own_server, start_prefect
    from flows.settings.as_read import as_read
    from flows.terminal.finished_run import finished_run

    if not again and has_own_server(config.store.root) and (folder := finished_run(as_read(config))):
        say(
            "nothing to do: an earlier run of these settings is complete and unchanged (--again runs it again)"
        )
        show_end(folder, Console())
        return
    run_stage(config, Console(), start_prefect(config.store.root))


@app.command()
def sweep(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="YAML file of a stage with a section `sweep`, e.g. recipes/sweep-quickstart.yaml."
        ),
    ],
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Train every combination of a grid on shared data, and release the best. Finished members are reused."""
    from flows.settings.sweep_config import SweepConfig

    config = read_recipe(recipe, set_, SweepConfig)
    from flows.serve.local_prefect import start_prefect

    wait_for_server = start_prefect(config.store.root)
    with importing():
        from flows.terminal.sweep import sweep_at_terminal

    wait_for_server()
    sweep_at_terminal(config, Console(), run_flow)


@app.command()
def image(
    recipe: Recipe,
    set_: Overrides = [],  # noqa: B006
    only_wheelhouse: Annotated[
        bool,
        typer.Option(
            "--only-wheelhouse",
            help="Gather the wheels and stop; prints their "
            "folder, to be carried to a host without a package index.",
        ),
    ] = False,
    sqsh: Annotated[
        Path | None, typer.Option(help="Write the image to this file for Pyxis, by enroot; prints its path.")
    ] = None,
    sif: Annotated[
        Path | None, typer.Option(help="Write the image to this file for Apptainer; prints its path.")
    ] = None,
) -> None:
    """Build or find the trainer image of this checkout; prints the reference that steps run by, or a cluster's file."""
    from flows.terminal.image_command import make_image
    from tasks.image.cluster_image import SIF, SQUASHFS

    if (sqsh and sif) or (only_wheelhouse and (sqsh or sif)):
        raise typer.BadParameter("give one of --sqsh, --sif and --only-wheelhouse")
    config = read_recipe(recipe, set_)
    file = (SQUASHFS, sqsh) if sqsh else (SIF, sif) if sif else None
    say(make_image(config, Console(stderr=True), only_wheelhouse, file))


@app.command()
def init(
    model: Annotated[
        str, typer.Option(help="The SFT checkpoint: a directory, org/name on the Hub, package:NAME.")
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="Preference data: a file, a directory, org/name on the Hub. May be given several times."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
    chat_template: Annotated[
        str,
        typer.Option(
            help="A chat template's name (chatml, tulu, ...), file or text, for a checkpoint that has none."
        ),
    ] = "",
    store: Store = Path(".pairline"),
) -> None:
    """Look at a model and at preference data, and write a first recipe for them, with the reason beside each setting."""
    from flows.terminal.first_recipe import write_first_recipe

    write_first_recipe(model, data, out, chat_template or None, store, Console())


@app.command()
def schema(
    sweep: Annotated[bool, typer.Option("--sweep", help="Of a sweep's recipe.")] = False,
    page: Annotated[bool, typer.Option("--page", help="As the page docs/settings.md.")] = False,
) -> None:
    """Print the JSON Schema of a recipe: every setting with its type, bounds, default and description."""
    from flows.settings.schema import recipe_schema, settings_page, sweep_schema

    say(settings_page() if page else sweep_schema() if sweep else recipe_schema())


@app.command()
def reap(dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False) -> None:
    """End the containers and Slurm jobs that no live run owns. Touches nothing without Pairline's mark."""
    from tasks.launch.reaped import reap_all

    found = reap_all(dry_run)
    for one in found:
        say(one_line(f"{one.name}: {one.done}" + (f" ({one.reason})" if one.reason else "")))
    say(f"{len(found)} containers and jobs, {sum(bool(one.reason) for one in found)} of them orphaned")


RunName = Annotated[str, typer.Option("--run", help="The waiting run: its folder's name, or `last`.")]
Reason = Annotated[str, typer.Option(prompt=True, help="Why; it goes into the record.")]
Name = Annotated[
    str, typer.Option(help="Who decides; it goes into the record. Empty: the name you are logged in with.")
]


@app.command()
def approve(
    reason: Reason, run_name: RunName = "last", name: Name = "", store: Store = Path(".pairline")
) -> None:
    """Approve the checkpoint of a run that waits on a Prefect server (gate.approval person)."""
    from flows.terminal.answer_run import answer_run

    say(answer_run(store, run_name, "approve", name, reason))


@app.command()
def reject(
    reason: Reason, run_name: RunName = "last", name: Name = "", store: Store = Path(".pairline")
) -> None:
    """Reject it: the run ends, nothing is uploaded."""
    from flows.terminal.answer_run import answer_run

    say(answer_run(store, run_name, "reject", name, reason))


app.command("show-rows")(show_rows)
app.command("job-spec")(job_spec)
for _command in (
    plan,
    status,
    watch,
    report,
    compare,
    prepare,
    export,
    intake,
    signing_key,
    serve_commands.up,
    serve_commands.down,
    serve_commands.emit_sft,
    serve_commands.gc,
):
    app.command()(_command)


def main() -> None:
    """Run the command line: every error is a sentence, its notes say where more stands, its kind is the exit code."""
    try:
        app()
    except PairlineError as error:
        say(f"Error: {error}", sys.stderr)
        for note in getattr(error, "__notes__", []):
            say(note, sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("Interrupted. Start again to go on: finished steps are kept.", sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception:  # a defect of ours, outside of a run
        say(traceback.format_exc(), sys.stderr)
        sys.exit(1)
