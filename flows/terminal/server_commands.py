"""`pairline up`, `down`, `emit-sft`, `gc`: the commands of those who keep a server. Prefect is imported when one runs."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.visible import one_line
from flows.serve.settings import PROJECT
from flows.settings.overrides import load_yaml
from tasks.text.terminal import say

Store = Annotated[Path, typer.Option(help="Folder of the store (a recipe's store.root).")]


def up() -> None:
    """Start server, work pool, deployments, limits, automations and worker on this machine; what runs is left alone.

    PAIRLINE_HOME (.pairline), PAIRLINE_PORT (4200), PAIRLINE_DATABASE_URL (SQLite), PAIRLINE_MAX_RUNS (8),
    PAIRLINE_TRAINING_SLOTS (1) and PAIRLINE_ALLOWED_HOSTS (none) change what is started. The link that is printed logs a
    browser in.
    """
    from flows.serve.settings import settings_from_environment
    from flows.serve.up import bring_up

    bring_up(settings_from_environment())


def down() -> None:
    """Stop the worker and the server that `pairline up` started. Runs at work go on when it is called again."""
    from flows.serve.settings import settings_from_environment
    from flows.serve.up import bring_down

    bring_down(settings_from_environment())


def emit_sft(
    checkpoint: Annotated[
        str, typer.Argument(help="Directory or Hub id (org/name) of a finished SFT checkpoint.")
    ],
    revision: Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Recipe for this checkpoint, in the deployment's folder of "
            "recipes; without it the deployment's own."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the SFT run, shown with the event.")] = "sft",
    attempt: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Raise it to have the same checkpoint processed again.")
    ] = 0,
    store: Store = Path(".pairline"),
) -> None:
    """Verify an SFT checkpoint and tell the server of it, which starts dpo-stage/after-sft: for jobs outside Prefect."""
    use_server(store)
    from tasks.checkpoint.allowed_code import check_pinned
    from tasks.checkpoint.announced import verify_checkpoint
    from tasks.events.chain import announce_sft
    from tasks.events.payloads import SftCheckpointReady, chain_tag
    from tasks.run.store_root import prepare_store

    parameters = parameters_of_deployment()
    used = recipe_to_name(recipe, parameters) if recipe else recipe_of_deployment(parameters)
    known = load_yaml(used).get("checkpoint") if used else None
    prepare_store(store)
    config = CheckpointConfig.model_validate({**(known or {}), "source": checkpoint, "revision": revision})
    check_pinned(config.allow_remote_code, str(used))
    found = verify_checkpoint(config, store)
    payload = SftCheckpointReady(
        name=name,
        source=found.source,
        revision=found.revision,
        weights_fingerprint=found.weights_fingerprint,
        tokenizer_fingerprint=found.tokenizer_fingerprint,
        chain=chain_tag(found.weights_fingerprint),
        recipe=used.name if recipe and used else None,
        attempt=attempt,
    )
    event, sent = announce_sft(payload)
    if sent:
        again = (
            f", attempt {event.attempt}: what was announced before started nothing"
            if event.attempt > attempt
            else ""
        )
        say(f"announced: {event.EVENT} {event.event_id} of {found.source}{again}")
    else:
        say(
            f"known: {event.EVENT} {event.event_id}; its run is tagged {event.event_tag}. "
            f"--attempt {event.attempt + 1} has it processed again."
        )


def parameters_of_deployment() -> dict[str, Any]:
    """Return those of dpo-stage/after-sft, which the event will start; none where the server does not have it."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            return client.read_deployment_by_name("dpo-stage/after-sft").parameters
        except ObjectNotFound:
            return {}


def recipe_of_deployment(parameters: dict[str, Any]) -> Path | None:
    """Return the recipe by which it takes a checkpoint whose event names none; None if it is not known here."""
    recipe = parameters.get("recipe")
    path = PROJECT / recipe if recipe else None  # deployments run in the project's folder
    return path if path is not None and path.is_file() else None


def recipe_to_name(recipe: Path, parameters: dict[str, Any]) -> Path:
    """Return the recipe, if an event can name it: the deployment looks it up in its folder. Raises ``ConfigError``."""
    folder = PROJECT / parameters.get("recipes_folder", "recipes")
    path = recipe if recipe.exists() else folder / recipe
    if folder.is_dir() and path.resolve().parent != folder.resolve():
        raise ConfigError(
            f"{recipe} does not lie in {folder}, where dpo-stage/after-sft takes recipes from; an event names "
            "them by file name. Put it there, or set the deployment's parameter recipes_folder to its folder."
        )
    return path


def gc(
    store: Store = Path(".pairline"),
    older_than_days: Annotated[
        float, typer.Option(min=0, max=100_000, help="Younger runs and results stay.")
    ] = 30.0,
    keep: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Newest completed runs of each name that stay anyway.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
) -> None:
    """Say which step results and snapshots of a store no kept run leads to, ask, and remove them. Published checkpoints
    stay."""
    from tasks.run.garbage import collect, in_words

    found = collect(store, older_than_days, keep, dry_run=True)
    for entry in found.garbage:
        say(one_line(f"{entry.num_bytes / 1e6:10.1f} MB  {entry.age_days:6.1f} days unused  {entry.path}"))
    say(in_words(found, dry_run=True))
    if dry_run or not found.garbage or not (yes or confirmed("Remove them?")):
        return
    say(in_words(collect(store, older_than_days, keep, dry_run=False), dry_run=False))


def confirmed(question: str) -> bool:
    """Return a person's yes. Raises ``ConfigError`` where nobody can be asked."""
    if not sys.stdin.isatty():
        raise ConfigError(
            "Nobody is at this terminal to be asked, so nothing was removed. --yes removes without asking."
        )
    return typer.confirm(question)


def use_server(store: Path) -> None:
    """Have Prefect talk to the server that is configured, or to the one that `pairline up` started beside the store.

    Raises ``ConfigError`` if there is neither.
    """
    from flows.serve.local_prefect import running_server, use_password, uses_configured_server

    if not uses_configured_server():
        if (url := running_server(store)) is None:
            raise ConfigError(
                "There is no Prefect server to tell. Start one with `make up`, or set PREFECT_API_URL to "
                "yours."
            )
        os.environ["PREFECT_API_URL"] = url
    use_password(store)
