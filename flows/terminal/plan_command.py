"""``pairline plan``: what a run would do, and on which cards it would fit."""

from typing import Annotated

import typer
from rich.console import Console

from dpo_core.contract.errors import PairlineError
from flows.settings.overrides import read_recipe
from flows.terminal.recipe_options import Overrides, Recipe


def plan(
    recipe: Recipe,
    set_: Overrides = [],  # noqa: B006 (typer reads the default, nobody changes it)
    card: Annotated[
        str | None,
        typer.Option(
            help="Also: does it fit on such cards, how long, how much? h100-80, a100-80, rtx4090-24, ..."
        ),
    ] = None,
    cards: Annotated[int | None, typer.Option(min=1, max=1024, help="Cards of a node.")] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Nodes; 1 where --cards is given.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, max=1e6, help="US dollars a card and hour; else a round figure.")
    ] = None,
    pair_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, max=100_000_000, help="Distinct tokens of a pair on average, where the data do not tell."
        ),
    ] = None,
) -> None:
    """Show what a run would do: steps, tokens, batch, memory, disk, a cluster's jobs. Starts nothing, needs no network."""
    from flows.before_start import check_before_start
    from flows.implementation import check_models, unchecked_models
    from flows.stage_parts import known_of_card
    from flows.step_software import unchecked_software
    from flows.terminal.on_cards import Cluster
    from flows.terminal.plan import checkpoint_time, plan_stage, show_plan
    from flows.terminal.plan_jobs import show_jobs
    from tasks.publish.directory_rights import check_directory
    from tasks.text.terminal import say

    config = read_recipe(recipe, set_)
    if card:
        cluster = Cluster.of(card, cards, nodes, price, config.compute.num_processes)
        config = read_recipe(recipe, [*set_, f"compute.num_processes={cluster.total}"])
        check_models(config)
        show_plan(plan_stage(config, cluster, pair_tokens), Console())
        if unchecked := unchecked_models(config):
            say(unchecked)
        return
    planned = plan_stage(config)
    checkpoint = checkpoint_time(planned)
    show_plan(planned, Console(), checkpoint)
    show_jobs(config, checkpoint.grace)
    for unchecked in filter(None, (unchecked_software(config), unchecked_models(config))):
        say(unchecked)
    try:
        check_before_start(config)
        if config.upload.directory is not None:
            check_directory(config.upload.directory, [known_of_card(config, config.name)])
    except PairlineError as error:
        raise type(error)(f"On this machine a run would be refused: {error}") from error
