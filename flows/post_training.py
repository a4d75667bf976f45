"""The chain SFT -> DPO -> RLVR by events: what the deployments `after-sft` and `after-dpo` run.

Each takes the whole payload of the event that started it. The same event twice is one piece of work: the second run looks
for the first and ends at once. Anybody who reaches the server can send an event, so it only says which checkpoint: what is
done with that, and what it may do, stands in the deployment and in the folder of recipes that the deployment names.
"""

import re
from pathlib import Path

from prefect import flow
from prefect.states import Completed, State

from dpo_core.contract.errors import ConfigError, HandoffRefused
from flows.dpo_stage import run_stage
from flows.rlvr_intake import local_path, rlvr_intake
from flows.settings.overrides import apply_overrides, load_yaml, validated
from flows.settings.stage_config import StageConfig
from tasks.checkpoint.allowed_code import check_pinned
from tasks.checkpoint.announced import check_unchanged, verify_checkpoint
from tasks.events.chain import ALREADY_STARTED, earlier_run, join_chain
from tasks.events.payloads import CheckpointReady, DpoCheckpointReady, SftCheckpointReady
from tasks.handoff.intake_config import IntakeConfig
from tasks.handoff.schema import RLVRHandoff, read_handoff
from tasks.image.config import ImageConfig
from tasks.intake import AcceptedHandoff
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launchers import LauncherSections
from tasks.show.run_log import make_logs_visible

RECIPE_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*\.ya?ml", re.ASCII)
RECIPES = Path("recipes")  # of the folder that deployments run in


def named_recipe(name: str, folder: Path) -> Path:
    """Return the recipe that an event names, a file of the operator's ``folder``. Raises ``ConfigError`` for anything
    else.
    """
    path = folder / name
    if not RECIPE_NAME.fullmatch(name):
        raise ConfigError(
            f"The event names the recipe {name!r}, expected the name of a .yaml file in {folder}, without a "
            "path. Put the recipe there, or set the deployment's parameter recipes_folder to its folder."
        )
    if path.exists() and path.resolve().parent != folder.resolve():
        raise ConfigError(
            f"{path} is a link out of {folder}; a recipe that an event names must lie there. Put a copy in "
            "its place."
        )
    return path


def config_after_sft(
    checkpoint: SftCheckpointReady, recipe: Path, overrides: list[str], recipes_folder: Path = RECIPES
) -> StageConfig:
    """Return the recipe (the payload's own wins) with the announced checkpoint in it. Raises ``ConfigError``."""
    path = named_recipe(checkpoint.recipe, recipes_folder) if checkpoint.recipe else recipe
    values = apply_overrides(load_yaml(path), overrides)
    place = {"source": checkpoint.source, "revision": checkpoint.revision}
    config = validated({**values, "checkpoint": {**(values.get("checkpoint") or {}), **place}}, str(path))
    check_pinned(config.checkpoint.allow_remote_code, str(path))
    return config


def already_started(payload: CheckpointReady) -> State | None:
    """Join the chain; the state to end in if an earlier run of the same event is at work or done."""
    make_logs_visible()
    join_chain(payload.chain, payload.event_tag)
    if earlier := earlier_run(payload):
        return Completed(
            name=ALREADY_STARTED,
            message=f"The same event started {earlier.name} ({earlier.id}), which is "
            f"{earlier.state.name if earlier.state else 'known'}. To have the checkpoint processed again, "
            "announce it with another attempt.",
        )
    return None


@flow(name="dpo-stage", persist_result=False)
def dpo_after_sft(
    checkpoint: SftCheckpointReady,
    recipe: Path = Path("recipes/quickstart.yaml"),
    overrides: list[str] = [],  # noqa: B006 (read only; the form shows it)
    recipes_folder: Path = RECIPES,
) -> RLVRHandoff | State:
    """Run the stage on an announced SFT checkpoint.

    Args:
        checkpoint: The event's payload.
        recipe: Recipe of the stage, unless the event names its own.
        overrides: section.field=value, on top of the recipe.
        recipes_folder: Where the recipes lie that an event may name, by file name.
    """
    if state := already_started(checkpoint):
        return state
    config = config_after_sft(checkpoint, recipe, overrides, recipes_folder)
    check_unchanged(
        verify_checkpoint(config.checkpoint, config.store.root),
        checkpoint.weights_fingerprint,
        checkpoint.tokenizer_fingerprint,
    )
    return run_stage(config)


@flow(name="rlvr-intake", persist_result=False)
def rlvr_after_dpo(
    checkpoint: DpoCheckpointReady,
    store_root: Path = Path(".pairline"),
    compute: ComputeConfig = ComputeConfig(),
    token_block: str | None = None,
    image: ImageConfig = ImageConfig(),
    intake: IntakeConfig = IntakeConfig(),
    launchers: LauncherSections = LauncherSections(),
) -> AcceptedHandoff | State:
    """Verify the hand-off that the event tells of, as an RLVR run would. Raises ``HandoffRefused``.

    Args:
        checkpoint: The event's payload.
        store_root: Folder of the store.
        compute: Where the check runs.
        token_block: Name of the Prefect Secret block with a Hub token, for a private repository; empty: HF_TOKEN.
        image: The trainer image, if the check runs in a container.
        intake: What a hand-off may do here: which Hub, whose signature, which code. An event changes nothing of it.
        launchers: The launchers' own settings, as a recipe has them.
    """
    if state := already_started(checkpoint):
        return state
    check_same_handoff(checkpoint)
    return rlvr_intake.fn(checkpoint.handoff, store_root, compute, token_block, image, intake, launchers)


def check_same_handoff(checkpoint: DpoCheckpointReady) -> None:
    """Raise ``HandoffRefused`` if another hand-off lies where the announced one was."""
    found = read_handoff(local_path(checkpoint.handoff)).fingerprint
    if found != checkpoint.handoff_fingerprint:
        raise HandoffRefused(
            f"{checkpoint.handoff} is another hand-off than was announced: fingerprint {found[:12]}, "
            f"expected {checkpoint.handoff_fingerprint[:12]}."
        )
