"""``pairline plan``: what a run would do, from the recipe and local files alone. Nothing is started or fetched."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dpo_core.contract.amount import num_held_out
from dpo_core.contract.chat_templates import named_in_plan
from dpo_core.contract.float8 import ModelCode
from dpo_core.contract.jobs import BatchPlan
from dpo_core.contract.keep_best import EXTREME
from dpo_core.contract.length_bias import length_bias_warning
from dpo_core.contract.loss_config import Loss, LossConfig
from dpo_core.contract.row_warnings import all_of, amount_warning, truncation_warning
from dpo_core.contract.warning_signs import TITLES, SignName
from flows.settings.stage_config import StageConfig
from flows.terminal.checkpoint_time import CheckpointTime
from flows.terminal.memory import training_memory
from flows.terminal.model_size import ModelSize, model_size
from flows.terminal.on_cards import Cluster, lines_of, on_cards
from flows.terminal.source_size import SourceSize, source_size
from tasks.checkpoint.end_mark import end_mark_warning
from tasks.gate.config import GateConfig
from tasks.hub.judge_server import how_judged
from tasks.launch.compute import solve_batch
from tasks.launch.stop_grace import WEIGHT_BYTES, checkpoint_bytes
from tasks.report.tables import counted
from tasks.text.terminal import show_table, tell

GIB = 2**30
SNAPSHOT_BYTES, EXPORT_BYTES = 4, 2  # per parameter


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do."""

    name: str
    steps: tuple[tuple[str, str], ...]  # (step, what it does)
    model: ModelSize
    sources: tuple[SourceSize, ...]
    batch: BatchPlan
    num_steps: int | None
    memory_bytes: dict[str, int]  # part -> bytes per training process
    disk_bytes: dict[str, int]
    warnings: tuple[str, ...] = ()  # what the mixture's ledger will say, as far as it is known here
    checkpoint_bytes: int | None = None
    store: Path = Path()
    stop_grace_seconds: int | None = None  # as the recipe says
    tensor_degree: int = 1
    on_cards: tuple[str, ...] = ()  # whether it fits on the cards that were asked for, and what it takes


def plan_stage(config: StageConfig, cluster: Cluster | None = None, pair_tokens: int | None = None) -> Plan:
    """Work out what a run would do, on a cluster's cards where one is given, for pairs of ``pair_tokens`` distinct tokens.
    Raises ``ConfigError`` if the batch cannot be met."""
    batch = solve_batch(
        config.train.global_batch_pairs,
        config.train.per_device_batch_pairs,
        config.compute.num_processes,
        config.compute.tensor_degree,
    )
    sources = tuple(source_size(source, config.data.max_length_tokens) for source in config.data.sources)
    size = model_size(config.checkpoint)
    num_steps = _num_steps(config, sources)
    found = on_cards(config, size, cluster) if cluster else None
    return Plan(
        name=config.name,
        steps=tuple(_steps(config)),
        model=size,
        sources=sources,
        batch=batch,
        num_steps=num_steps,
        memory_bytes=found.memory if found else training_memory(config, size, batch),
        disk_bytes=_disk(config, size),
        warnings=tuple(_warnings(config, sources)),
        checkpoint_bytes=None
        if size.num_parameters is None
        else checkpoint_bytes(_trained(config, size), config.optim),
        store=config.store.root.expanduser().absolute(),
        stop_grace_seconds=config.compute.stop_grace_seconds,
        tensor_degree=config.compute.tensor_degree,
        on_cards=tuple(lines_of(config, size, cluster, num_steps, pair_tokens or _pair_tokens(sources)))
        if cluster
        else (),
    )


def _pair_tokens(sources: tuple[SourceSize, ...]) -> int | None:
    """Tokens of a pair on average; None if a source does not tell."""
    rows, tokens = sum(source.rows or 0 for source in sources), [source.tokens for source in sources]
    return None if None in tokens or not rows else sum(filter(None, tokens)) // rows or None


def _warnings(config: StageConfig, sources: tuple[SourceSize, ...]) -> Iterator[str]:
    folder = Path(config.checkpoint.tokenizer or config.checkpoint.source).expanduser()
    cuts = config.data.when_too_long == "truncate"
    yield from all_of(
        end_mark_warning(folder, config.checkpoint) if folder.is_dir() else None,
        *(amount_warning(one.label, one.amount, one.available) for one in sources),
        length_bias_warning(sources),
        *(truncation_warning(one.label, one.long_fraction, is_estimate=True) for one in sources if cuts),
    )


def _steps(config: StageConfig) -> list[tuple[str, str]]:
    upload = f"to the local directory {config.upload.directory or config.store.root / 'published'}"
    if config.upload.repo_id:
        upload = f"to {config.upload.repo_id} ({'private' if config.upload.private else 'PUBLIC'})"
    revision = f" at {config.checkpoint.revision}" if config.checkpoint.revision else ""
    tokenizer = f", the tokenizer of {config.checkpoint.tokenizer}" if config.checkpoint.tokenizer else ""
    reference = (
        f"with {config.reference.source or 'the SFT checkpoint'}"
        if config.objective.needs_reference
        else (f"skipped: {config.objective.title} uses no reference")
    )
    targets = config.adapter.target_modules
    adapter = (
        ""
        if config.adapter.kind == "none"
        else (
            f", {config.adapter.kind} of rank {config.adapter.rank}, alpha {config.adapter.alpha:g} on "
            f"{targets if isinstance(targets, str) else ', '.join(targets)}"
        )
    )
    return [
        ("fetch checkpoint", f"{config.checkpoint.source}{revision}{tokenizer}"),
        (
            "mix data",
            f"{counted(len(config.data.sources), 'source')}, {config.data.held_out} held out, at most "
            f"{config.data.max_length_tokens} tokens, {config.data.when_too_long} longer ones"
            + named_in_plan(config.checkpoint.chat_template),
        ),
        ("cache reference", reference),
        (
            "train",
            f"{_objective(config.objective)}, learning rate {config.optim.learning_rate:g} "
            f"{config.optim.schedule}, {counted(config.train.num_epochs, 'epoch')}, {config.train.precision}"
            f"{_code(config)}{adapter}"
            f"{_sharding(config)}{_while_training(config)}",
        ),
        ("evaluate", config.evaluation.in_words),
        *([("judge", how_judged(config.judge, config.compute, config))] if config.judge.is_on else []),
        *([("benchmark", config.benchmarks.in_words)] if config.benchmarks.tasks else []),
        *_gate(config.gate, config.evaluation.warnings.stop),
        ("upload", upload),
        ("hand off", "load it from there, have it answer, write handoff.json"),
    ]


def _while_training(config: StageConfig) -> str:
    evaluation, keep = config.evaluation, config.train.keep_best
    if not evaluation.is_while_training:
        return ""
    chosen = ""
    if keep:
        patient = (
            f", stop after {counted(keep.patience, 'evaluation')} without a better one"
            if keep.patience
            else ""
        )
        chosen = f", the step with the {EXTREME[keep.direction]} {keep.metric} exported{patient}"
    answers = ""
    if every := evaluation.answers_every:
        answers = f", prompts answered at {'each' if every == 1 else f'one in {every}'}"
    return f", held-out pairs measured {evaluation.cadence}{answers}{chosen}"


def _objective(loss: Loss) -> str:
    """ "dpo, beta 0.1 (usual)", or each term of a sum so."""
    if isinstance(loss, LossConfig):
        return f"{loss.name}, {_beta(loss)}"
    return " + ".join(f"{weight:g} {part.name} ({_beta(part)})" for weight, part in loss.parts)


def _beta(loss: LossConfig) -> str:
    if loss.traits.token_mean:
        return "no beta"
    usual = loss.traits.usual_beta
    return f"beta {loss.beta:g} ({'usual' if loss.beta == usual else f'usual for {loss.name}: {usual:g}'})"


def _gate(gate: GateConfig, stopping: tuple[SignName, ...]) -> list[tuple[str, str]]:
    rules = gate.in_words
    rules += [f"{name}: {words}" for name, some in gate.sets.items() for words in some.in_words]
    rules += [gate.judge.in_words] if gate.judge else []
    rules += [rule.in_words(task) for task, rule in gate.benchmarks.items()]
    rules += [f"no sign of {TITLES[name]}" for name in stopping]
    waits = "suspended" if gate.wait == "suspend" else "paused"
    asked = [("approve", f"a person decides within {gate.timeout_seconds:,} s; the run is {waits} meanwhile")]
    return ([("gate", ", ".join(rules))] if rules else []) + (asked if gate.approval == "person" else [])


def _code(config: StageConfig) -> str:
    """What computes the model, where that is not transformers, and products where not in the precision."""
    implementation, float8 = ModelCode.of(config.train)
    on = "" if implementation == "transformers" else " on OLMo-core"
    return on + ("" if float8 == "none" else f", products in float8 ({float8})")


def _sharding(config: StageConfig) -> str:
    kind, offload, degree = config.compute.sharding, config.compute.offload, config.compute.shard_degree
    if kind == "none":
        return ""
    copies = f" in copies over {degree} processes each" if degree else ""
    tensor = config.compute.tensor_degree
    copies += f", matrices shared out between {tensor} that compute together" if tensor > 1 else ""
    return f", {kind}{copies}" + ("" if offload == "none" else f" with {offload} offloaded")


def _num_steps(config: StageConfig, sources: tuple[SourceSize, ...]) -> int | None:
    """Optimizer steps, at most; rows that the mixture drops make it fewer. None if a source's rows are not known."""
    if any(source.rows is None for source in sources):
        return config.train.max_steps
    rows = sum(source.rows or 0 for source in sources)
    rows -= num_held_out(config.data.held_out, rows)  # prompts: a prompt with several pairs takes more
    steps = -(-max(rows, 0) // config.train.global_batch_pairs) * config.train.num_epochs
    return min(steps, config.train.max_steps or steps)


def _trained(config: StageConfig, size: ModelSize) -> int:
    """Parameters that are trained, where the model's size is known."""
    whole = size.num_parameters or 0
    return whole if config.adapter.kind == "none" else size.adapter_parameters(config.adapter) or 0


def _disk(config: StageConfig, size: ModelSize) -> dict[str, int]:
    if size.num_parameters is None:
        return {}
    model, trained = size.num_parameters, _trained(config, size)
    checkpoint = checkpoint_bytes(trained, config.optim)
    kept = config.train.keep_checkpoints + bool(config.train.keep_best)
    parts = {
        "snapshot of the SFT checkpoint": SNAPSHOT_BYTES * model,
        f"checkpoints ({kept} kept, 1 being written)": checkpoint * (kept + 1),
        "trained weights": WEIGHT_BYTES * trained,
        "export": EXPORT_BYTES * model,
    }
    if config.upload.repo_id is None:
        parts["published copy"] = EXPORT_BYTES * model
    return parts


def checkpoint_time(plan: Plan) -> CheckpointTime:
    """Return what a checkpoint of the run takes; the disk is measured."""
    return CheckpointTime.measured(plan.checkpoint_bytes, plan.store, plan.stop_grace_seconds)


def show_plan(plan: Plan, console: Console, checkpoint: CheckpointTime | None = None) -> None:
    """Print the plan. ``checkpoint``: where it was measured already."""
    show_table(console, ("task", "what"), plan.steps, f"Plan of {plan.name}: nothing is started")
    show_table(
        console,
        ("source", "amount", "rows", "tokens (about)"),
        [
            (source.label, source.amount, _count(source.rows), _count(source.tokens))
            for source in plan.sources
        ],
    )
    batch = plan.batch
    total = sum(plan.memory_bytes.values())
    lines = [
        f"Effective batch: {batch.global_pairs} pairs = {_shares(batch, plan.tensor_degree)} x {batch.per_device_pairs} per "
        f"device x {batch.accumulation} accumulation",
        "Optimizer steps: "
        + ("unknown until the data are mixed" if plan.num_steps is None else f"at most {plan.num_steps:,}"),
        f"Parameters: {_count(plan.model.num_parameters)} ({plan.model.origin})",
        *_amounts("Memory per training process", plan.memory_bytes, total),
        *_amounts("Disk in the store", plan.disk_bytes, sum(plan.disk_bytes.values())),
        *(checkpoint or checkpoint_time(plan)).lines(),
        *plan.on_cards,
    ]
    if plan.memory_bytes and plan.model.shape is None:
        lines.append(
            "Activations, logits and an adapter come on top; they are known once the checkpoint is here."
        )
    lines += [f"Warning: {warning}" for warning in plan.warnings]
    tell(console, "\n".join(lines))


def _shares(batch: BatchPlan, tensor_degree: int) -> str:
    """Who gets pairs of its own."""
    if tensor_degree > 1:
        return f"{batch.num_processes:,} x {tensor_degree} processes"
    return "1 process" if batch.num_processes == 1 else f"{batch.num_processes:,} processes"


def _amounts(title: str, parts: dict[str, int], total: int) -> list[str]:
    if not parts:
        return [f"{title}: unknown, as the number of parameters is"]
    lines = [f"  {value / GIB:8,.1f} GiB  {part}" for part, value in parts.items()]
    return [f"{title}: about {total / GIB:,.1f} GiB", *lines]


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
