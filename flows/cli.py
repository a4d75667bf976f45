"""The command line: ``pairline run recipe.yaml --set loss.beta=0.2``, ``plan``, ``schema``, ``status``."""

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dpo_core.errors import PairlineError
from dpo_core.results import RESULT_FILE, EvaluateResult
from flows.overrides import read_recipe
from flows.stage_config import StageConfig

EXIT_INTERRUPTED = 130
INTERNAL_ERROR_FILE = "internal-error.txt"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Pairline: the DPO stage of LLM post-training. SFT checkpoint and preference data in, a "
                       "verified checkpoint out that an RLVR run can start from.")
Recipe = Annotated[Path, typer.Argument(help="YAML file with the settings of a run, e.g. recipes/quickstart.yaml.")]
Overrides = Annotated[list[str], typer.Option("--set", help="Change a setting: section.field=value, e.g. loss.beta=0.1. "
                                              "May be given several times.")]
Store = Annotated[Path, typer.Option(help="Folder of the store (a recipe's store.root).")]


@app.command()
def run(recipe: Recipe, set_: Overrides = []) -> None:  # noqa: B006 (typer reads the default, nobody changes it)
    """Run the stage; steps whose results are in the store are reused."""
    config = read_recipe(recipe, set_)
    from flows.local_prefect import prepare_prefect, remember_database

    temporary = prepare_prefect(config.store.root)
    run_stage(config, Console())
    if temporary:
        remember_database(config.store.root)


def run_stage(config: StageConfig, console: Console) -> None:
    """Run the flow with its progress on ``console``; the last line is the path of the hand-off."""
    # Prefect reads its settings when it is imported, so nothing above imports it.
    from flows.dpo_stage import dpo_stage
    from flows.run_display import RetryNotices, run_display
    from tasks.launch.launcher import listening
    from tasks.report.run_folder import read_run, step_listener

    display, notices = run_display(console), RetryNotices(console)
    logging.getLogger("prefect.task_runs").addHandler(notices)
    token = step_listener.set(display.step)
    try:
        with display, listening(display.progress):
            dpo_stage(config)
    except PairlineError as error:
        _tell_where(error, display.folder)
        raise
    except Exception as error:
        raise _internal(error, display.folder) from error
    finally:
        step_listener.reset(token)
        logging.getLogger("prefect.task_runs").removeHandler(notices)
    assert display.folder is not None
    outputs = read_run(display.folder).outputs
    show_evaluation(console, Path(outputs["evaluate"]))
    console.print(f"run: {display.folder}", soft_wrap=True, highlight=False, markup=False)
    print(f"handoff: {outputs['handoff']}", flush=True)


def show_evaluation(console: Console, folder: Path) -> None:
    """The table before/after that ends a run."""
    from tasks.report.tables import HEADLINE, metrics_rows

    result = EvaluateResult.model_validate_json((folder / RESULT_FILE).read_bytes())
    table = Table("held out", "before", "after", "change",
                  title=f"{result.num_pairs} held-out pairs, {result.num_prompts} held-out prompts")
    for row in metrics_rows(result, HEADLINE):
        table.add_row(*(str(cell) for cell in row.values()))
    console.print(table)


@app.command()
def plan(recipe: Recipe, set_: Overrides = []) -> None:  # noqa: B006
    """Show what a run would do: steps, tokens, batch, memory, disk. Starts nothing and needs no network."""
    from flows.plan import plan_stage, show_plan

    config = read_recipe(recipe, set_)
    show_plan(plan_stage(config), Console())


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe: every setting with its type, bounds, default and description."""
    print(json.dumps(StageConfig.model_json_schema(), indent=2))


@app.command()
def intake(handoff: Annotated[str, typer.Argument(help="Path or file:// address of a handoff.json.")],
           store: Store = Path(".pairline"),
           token_block: Annotated[str | None, typer.Option(help="Prefect Secret block with the Hub token of a private "
                                                           "repository; without it HF_TOKEN.")] = None) -> None:
    """Verify a hand-off on the receiving side: schema, files, revision, RLVR rules, a fresh load that answers."""
    from flows.local_prefect import prepare_prefect

    prepare_prefect(store)
    from flows.rlvr_intake import rlvr_intake

    accepted = rlvr_intake(handoff, store, token_block=token_block)
    for check in accepted.rules:
        print(f"{'ok  ' if check.passed else 'FAIL'}  {check.rule}: {check.detail}")
    print(f"accepted: {accepted.handoff.checkpoint.uri}")


@app.command()
def status(store: Store = Path(".pairline"), run_name: Annotated[str, typer.Option("--run", help="One run in detail: "
           "its folder's name, or `last`.")] = "") -> None:
    """List the runs of a store with their steps, durations and results. Reads files only."""
    from flows.status import show_run, show_runs

    show_run(store, run_name, Console()) if run_name else show_runs(store, Console())


def _tell_where(error: PairlineError, folder: Path | None) -> None:
    """Add the run's folder to an error that names no log of its own."""
    if folder is not None and not getattr(error, "__notes__", []):
        error.add_note(f"Log of the run: {folder / 'run.log'}")


def _internal(error: Exception, folder: Path | None) -> PairlineError:
    """A defect of ours: one sentence for the user, the traceback in a file."""
    path = (folder or Path.cwd()) / INTERNAL_ERROR_FILE
    path.write_text("".join(traceback.format_exception(error)))
    return PairlineError(f"Internal error, a defect of Pairline and not of your input: {type(error).__name__}: "
                         f"{str(error)[:300]}. Please report it with {path}.")


def main() -> None:
    """Entry point: every error is a sentence, its notes say where more stands, its kind is the exit code."""
    try:
        app()
    except PairlineError as error:
        print(f"Error: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", []):
            print(note, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("Interrupted. Start again to go on: finished steps are kept.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
