"""``pairline job-spec``: a step as another engine's description, to be looked at and submitted by hand."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.job import JOB_FILE, Job
from dpo_core.contract.job_registry import JOBS, read_job
from dpo_core.contract.jobs import EvaluateJob, ReferenceJob, ScoringJob, TrainJob
from dpo_core.contract.store import write_bytes, write_json
from flows.settings.overrides import read_recipe
from flows.settings.stage_config import StageConfig
from flows.step_software import wanted_extras
from flows.terminal.recipe_options import Overrides, Recipe
from tasks.image.image_ref import PYTHON
from tasks.launch.command import ACCELERATE_FILE, accelerate_settings, inputs_of
from tasks.launch.compute import sharding_of
from tasks.launch.job_spec.beaker import experiment
from tasks.launch.job_spec.config import NodeSection
from tasks.launch.job_spec.kubernetes import jobset, pod_user
from tasks.launch.job_spec.step_description import Asked
from tasks.launch.launcher import StepImage
from tasks.launch.store_access import hand_over, let_read
from tasks.text.terminal import say

Engine = Literal["kubernetes", "beaker"]
WIDE = 10_000  # YAML's lines are not broken


def job_spec(
    recipe: Recipe,
    engine: Annotated[Engine, typer.Option("--for", help="kubernetes: a JobSet. beaker: an experiment.")],
    step: Annotated[str, typer.Option(help="Which step; with --job it is the job's.")] = "train",
    job: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the step's job in the store, as `pairline prepare` names it; without one, places are open."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write instead of the terminal.")
    ] = None,
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Print a step as a job of Kubernetes or Beaker, by the same command and container as here. Submits nothing."""
    config = read_recipe(recipe, set_)
    text = spec_text(config, engine, step, job)
    if out is None:
        say(text.rstrip("\n"))
        return
    write_bytes(out.absolute(), text.encode())
    say(f"written: {out}")


def spec_text(config: StageConfig, engine: Engine, step: str, folder: Path | None) -> str:
    """Return the description with how to submit it. Raises ``ConfigError`` for what the recipe lacks for it, ``StoreError``
    for a folder without a job."""
    if folder is None and step not in JOBS:
        raise ConfigError(f"--step {step} is no step; use one of {', '.join(sorted(JOBS))}.")
    job = read_job(folder.expanduser().absolute() / JOB_FILE) if folder is not None else None
    named = job.step if job else step
    store, computes = config.store.root.expanduser().absolute(), named not in config.steps_without_card
    asked = Asked(named, job, store, computes)
    if job is not None:
        _check_current(job, config)
    if engine == "kubernetes":
        section: NodeSection = config.kubernetes
        how = ["kubectl create -f THIS_FILE"]
        spec = jobset(asked, config.compute, config.docker, config.kubernetes, _pushed_image(config))
    else:
        section, how = config.beaker, _beaker_lines(config)
        image = StepImage(config.beaker.image, PYTHON)
        spec = experiment(asked, config.compute, config.docker, config.beaker, image)
    if job is not None:
        user = pod_user(config.kubernetes) if engine == "kubernetes" else None
        make_ready(job, section.gpus_per_node == 0 or not asked.uses_cards, user)
    return _with_lines(spec, asked, how)


def _pushed_image(config: StageConfig) -> StepImage:
    if config.image.use is None or "@" not in config.image.use:
        variant = _variant(config, config.kubernetes)
        raise ConfigError(
            "Pods fetch the trainer image from a registry by its digest, and image.use names none.",
            f"Push it (`pairline image RECIPE --set image.variant={variant} --set image.push=true --set "
            "image.repository=HOST/TEAM/pairline-trainer`) and set image.use to what that prints.",
        )
    return StepImage(config.image.use, PYTHON)


def _variant(config: StageConfig, section: NodeSection) -> str:
    """The variant of the trainer image that holds what the recipe's steps need on such nodes."""
    return "-".join(filter(None, ("cuda" if section.gpus_per_node else "cpu", wanted_extras(config))))


def _beaker_lines(config: StageConfig) -> list[str]:
    workspace, name = config.beaker.workspace, config.beaker.image.rpartition("/")[2]
    return [
        f"beaker image create --workspace {workspace} --name {name} IMAGE   # what `pairline image RECIPE "
        f"--set image.variant={_variant(config, config.beaker)}` printed",
        f"beaker experiment create --workspace {workspace} THIS_FILE",
    ]


def _check_current(job: Job, config: StageConfig) -> None:
    """Raise ``ConfigError`` for a job that was written down with other settings than the recipe's: one before it, whose
    folder has the same name where they cannot change the result."""
    how = {"reference": "prepare RECIPE", "train": "prepare RECIPE --reference"}.get(job.step, "run RECIPE")
    again = f"Start `pairline {how}` again; it writes down the job of these settings, while no step is at work on it."
    if isinstance(job, TrainJob):
        planned = job.batch.num_processes * job.sharding.tensor_degree
        if planned != config.compute.num_processes:
            raise ConfigError(
                f"{job.out_dir} is a training of {planned} processes, compute.num_processes is "
                f"{config.compute.num_processes}.",
                again,
            )
    expected = _of_recipe(job, config)
    if changed := [name for name, value in expected.items() if getattr(job, name) != value]:
        raise ConfigError(
            f"{job.out_dir} is a job of step {job.step} with another {', '.join(changed)} than the recipe's.",
            again,
        )


def _of_recipe(job: Job, config: StageConfig) -> dict[str, object]:
    """What the recipe says of a job's fields, by name."""
    train, fields = config.train, dict[str, object]()
    if isinstance(job, TrainJob):
        fields = {
            name: getattr(config, name) for name in ("optim", "train", "adapter", "tracking", "evaluation")
        }
        fields["loss"] = config.objective
    elif isinstance(job, ScoringJob):
        fields = {
            name: getattr(train, name)
            for name in ("precision", "implementation", "float8", "forward", "attention")
        }
    if isinstance(job, ReferenceJob):
        fields |= {name: getattr(config.reference, name) for name in ("tokens_per_batch", "rows_per_shard")}
    if isinstance(job, EvaluateJob):
        fields |= {"loss": config.objective, "evaluation": config.evaluation}
    # A reference pass in shares was written down as what each of them is.
    in_shares = config.compute.launcher == "slurm" and config.slurm.num_shares(job.step)
    if isinstance(job, TrainJob | ScoringJob) and not in_shares:
        fields["sharding"] = sharding_of(config.compute)
    return fields


def make_ready(job: Job, on_cpu: bool, user: tuple[int, int] | None) -> None:
    """Do what the launchers of this machine do before a start: accelerate's settings, and folders that are written to.

    What root has made is given to the ``user`` that the step will run as; None: that is root.
    """
    write_json(job.out_dir / ACCELERATE_FILE, accelerate_settings(on_cpu))
    for folder in job.writes():
        folder.mkdir(parents=True, exist_ok=True)
    if user is not None:
        hand_over((job.out_dir, *job.writes()), user)
        let_read(inputs_of(job), user)


def _with_lines(spec: dict[str, Any], asked: Asked, how: list[str]) -> str:
    head = [f"Step {asked.step} of Pairline. Submit it with:", *(f"    {line}" for line in how)]
    if asked.job is None:
        head += [
            "NOT YET: FINGERPRINT and what the step reads are open. `pairline prepare RECIPE` names the next",
            "job's folder; give it as --job.",
        ]
    else:
        head.append("Then `pairline run RECIPE` takes its result from the store.")
    lines = "".join(f"# {line}\n" for line in head)
    return lines + yaml.safe_dump(spec, sort_keys=False, width=WIDE, allow_unicode=True)
