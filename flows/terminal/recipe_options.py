"""Arguments that commands on a recipe share."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    Path, typer.Argument(help="YAML file with the settings of a run, e.g. recipes/quickstart.yaml.")
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", help="Change a setting: section.field=value, e.g. loss.beta=0.1. May be given several times."
    ),
]
