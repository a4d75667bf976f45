"""Whether a training fits on cards and their hosts, what would make it fit, and what it takes: ``plan --card``."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dpo_core.contract.back_ends import BACK_ENDS
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.float8 import check_float8_card
from dpo_core.contract.jobs import BatchPlan
from flows.settings.overrides import validated
from flows.settings.stage_config import StageConfig
from flows.terminal.cards import Card, card_of
from flows.terminal.memory import (
    CONTEXT_BYTES,
    scoring_memory,
    state,
    step_memory,
    tokens_of_forward,
    training_memory,
)
from flows.terminal.model_size import ModelSize
from flows.terminal.roofline import speed
from tasks.launch.compute import sharding_of, solve_batch

GIB = 1 << 30
USED_SHARE = 0.94  # of a card's memory; the allocator cannot use all of it
PROCESS_BYTES = 6 << 30  # of a host, for each process: libraries, CUDA's context, data
READ_BYTES = 4  # of a host, for each weight and process, while weights are read that are not shared out
START_BYTES = 4  # of a host, for each weight: the policy's start, where KL is measured while training
CARDS_OF_A_NODE = 8
MOST_NODES = 64


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where it would run."""

    name: str
    card: Card
    cards: int  # of a node
    nodes: int
    price: float

    @classmethod
    def of(
        cls, name: str, cards: int | None, nodes: int | None, price: float | None, processes: int
    ) -> "Cluster":
        """Return the cluster that is asked for; what is not said follows from the recipe's number of processes."""
        card = card_of(name)
        each = cards or (max(1, processes // nodes) if nodes else min(processes, CARDS_OF_A_NODE))
        nodes = nodes or (1 if cards else max(1, -(-processes // each)))
        return cls(name, card, each, nodes, card.price if price is None else price)

    @property
    def total(self) -> int:
        return self.cards * self.nodes

    def settings(self) -> dict[str, dict[str, int]]:
        """Return what a recipe must say to use all of them."""
        return {"compute": {"num_processes": self.total}}


@dataclass(frozen=True, slots=True)
class OnCards:
    """The verdict."""

    cluster: Cluster
    tokens: int  # of a forward
    memory: dict[str, int]  # of the training
    scoring: dict[str, int]  # of the reference pass and the evaluation
    host_bytes: int
    longest_pair: int

    @property
    def card_bytes(self) -> int:
        return max(sum(self.memory.values()), sum(self.scoring.values()))

    @property
    def fits_card(self) -> bool:
        return self.card_bytes <= USED_SHARE * self.cluster.card.gib * GIB

    @property
    def fits_host(self) -> bool:
        return self.host_bytes <= self.cluster.cards * self.cluster.card.host_gib * GIB

    @property
    def fits(self) -> bool:
        return self.fits_card and self.fits_host


def on_cards(config: StageConfig, size: ModelSize, cluster: Cluster) -> OnCards | None:
    """Return the verdict on a recipe of as many processes as the cluster has cards; None for a shape that is not known.
    Raises ``ConfigError`` where those that compute together would be on several nodes, and for cards without the units
    that the recipe needs."""
    if torn := config.compute.torn_groups(cluster.nodes):
        raise ConfigError(f"{torn}.", "Or plan for nodes of another number of cards.")
    if config.train.float8 != "none":
        check_float8_card(cluster.card.capability, cluster.name)
    if size.shape is None or size.num_parameters is None:
        return None
    batch = solve_batch(
        config.train.global_batch_pairs,
        config.train.per_device_batch_pairs,
        config.compute.num_processes,
        config.compute.tensor_degree,
    )
    tokens = _tokens(config, size, batch, cluster.card)
    context = {"CUDA's context, NCCL, what the allocator cannot use": CONTEXT_BYTES}
    memory = training_memory(config, size, batch, tokens) | context
    scoring = scoring_memory(config, size, _cards_of_a_copy(config, size, cluster)) | context
    reads_whole = not BACK_ENDS[config.compute.sharding].splits_weights
    host = cluster.cards * (PROCESS_BYTES + READ_BYTES * size.num_parameters * reads_whole)
    host += cluster.cards * _start_bytes(config, size.num_parameters)
    if config.compute.offload != "none":
        whole = validated(
            {**config.model_dump(mode="json"), "compute": {**config.compute.model_dump(), "offload": "none"}},
            "",
        )
        gone = sum(state(whole, size, size.num_parameters).values())
        host += cluster.cards * (gone - sum(state(config, size, size.num_parameters).values()))
    return OnCards(cluster, tokens, memory, scoring, host, 2 * config.data.max_length_tokens)


def _start_bytes(config: StageConfig, num_parameters: int) -> int:
    """Of a host and process: what the policy was at its start, to which KL is measured while training."""
    start_is_kept = config.adapter.kind == "none" and not config.reference.source
    if not (config.evaluation.measures_kl_while_training and start_is_kept):
        return 0
    splits = BACK_ENDS[config.compute.sharding].splits_weights
    return START_BYTES * num_parameters // (config.compute.num_shards if splits else 1)


def _cards_of_a_copy(config: StageConfig, size: ModelSize, cluster: Cluster) -> int | None:
    """A node's cards, where they share out a copy of their own in steps that score, as the trainer decides it; None where
    they do not."""
    weight = 4 if config.train.precision == "fp32" else 2
    may = sharding_of(config.compute).may_copy_by_machine
    room = cluster.cards * (cluster.card.gib * GIB - CONTEXT_BYTES)
    fits = 2 * weight * (size.num_parameters or 0) <= room
    return cluster.cards if fits and may and cluster.nodes > 1 and cluster.cards > 1 else None


def _tokens(config: StageConfig, size: ModelSize, batch: BatchPlan, card: Card) -> int:
    """Tokens of a forward: as the trainer finds them on a card where the recipe says auto."""
    one_pair = 2 * config.data.max_length_tokens
    if config.train.tokens_per_forward != "auto":
        return tokens_of_forward(config, batch)
    pairs = config.train.per_device_batch_pairs or batch.global_pairs // batch.num_processes
    beside = training_memory(config, size, batch, tokens=1)
    step = step_memory(config, size)
    room = USED_SHARE * card.gib * GIB - sum(beside.values()) + step.beside_state(1) - CONTEXT_BYTES
    return max(one_pair, step.tokens_within(int(0.9 * room), most=pairs * one_pair))


def lines_of(
    config: StageConfig, size: ModelSize, cluster: Cluster, num_steps: int | None, pair_tokens: int | None
) -> Iterator[str]:
    """Say whether it fits, what would, and what it takes."""
    found = on_cards(config, size, cluster)
    where = f"{cluster.nodes} x {cluster.cards} {cluster.name}"
    if found is None:
        yield f"On {where}: unknown, as the model's shape is (a mixture of experts, or a Hub id that is not shipped)"
        return
    host = cluster.cards * cluster.card.host_gib
    needs = (
        f"{found.card_bytes / GIB:,.1f} of {cluster.card.gib:g} GiB on a card "
        f"({sum(found.scoring.values()) / GIB:,.1f} in the reference pass and the evaluation), "
        f"{found.host_bytes / GIB:,.0f} of about {host:,.0f} GiB on a host"
    )
    yield f"On {where}: {'fits' if found.fits else 'DOES NOT FIT'}, {needs}, {found.tokens:,} tokens a forward"
    if not found.fits:
        yield from advice(config, size, cluster)
        return
    if config.compute.offload != "none":
        yield (
            f"How long it takes is unknown with compute.offload {config.compute.offload}: the link to the host's memory "
            "and the host's update are not in the formula (docs/back-ends.md)"
        )
        return
    assert size.shape  # else it would not be judged
    assumed = pair_tokens or config.data.max_length_tokens
    rate = speed(config, size.shape, cluster.card, cluster.nodes, found.tokens, assumed)
    origin = "from the data" if pair_tokens else "assumed: half of the longest possible; --pair-tokens"
    steps = num_steps or math.ceil(100_000 / config.train.global_batch_pairs)
    pairs = steps * config.train.global_batch_pairs // (config.train.num_epochs if num_steps else 1)
    hours = rate.seconds(steps, pairs) / 3600
    yield (
        f"About {rate.step_seconds:,.1f} s a step of {rate.forwards} forwards a card, {hours:,.1f} h for "
        f"{'at most ' if num_steps else ''}{steps:,} steps{'' if num_steps else ' (100,000 pairs)'} and the reference pass, "
        f"${hours * cluster.total * cluster.price:,.0f} at ${cluster.price:g} a card and hour; "
        f"{assumed:,} tokens a pair ({origin})"
    )


def advice(config: StageConfig, size: ModelSize, cluster: Cluster) -> Iterator[str]:
    """Yield the changes, one more at a time, that make it fit."""
    values = config.model_dump(mode="json", exclude_unset=True)
    together: dict[str, dict[str, object]] = {}
    for section, name, value in (
        ("train", "gradient_checkpointing", True),
        ("train", "tokens_per_forward", 2 * config.data.max_length_tokens),
        ("compute", "sharding", "fsdp2"),
    ):
        if getattr(getattr(config, section), name) == value or (name == "sharding" and cluster.total == 1):
            continue
        together.setdefault(section, {})[name] = value
        if name == "sharding":  # what goes without it alone
            if config.train.precision == "bf16_pure":
                together.setdefault("train", {})["precision"] = "bf16"
            if config.optim.optimizer == "adamw_8bit":
                together["optim"] = {"optimizer": "adamw"}
        said = ", ".join(f"{part}.{key}: {what}" for part, of in together.items() for key, what in of.items())
        if _fits(values, together, size, cluster):
            yield f"  would fit: {said}"
            return
    nodes = cluster.nodes
    while (nodes := 2 * nodes) <= MOST_NODES:
        larger = Cluster(cluster.name, cluster.card, cluster.cards, nodes, cluster.price)
        wanted = {**together, "compute": {**together.get("compute", {}), **larger.settings()["compute"]}}
        if _fits(values, wanted, size, larger):
            said = ", ".join(
                f"{part}.{key}: {what}" for part, of in wanted.items() for key, what in of.items()
            )
            yield f"  would fit: {said} ({nodes} nodes)"
            return
    lora = {**together, "adapter": {"kind": "lora"}}
    if _fits(values, lora, size, cluster):
        yield "  would fit: an adapter (adapter.kind: lora) with gradient checkpointing"
        return
    yield "  nothing that was tried fits: take cards with more memory"


def _fits(values: dict, more: dict, size: ModelSize, cluster: Cluster) -> bool:
    changed = {**values, **{section: {**values.get(section, {}), **of} for section, of in more.items()}}
    changed["compute"] = {**changed.get("compute", {}), **cluster.settings()["compute"]}
    try:
        found = on_cards(validated(changed, "the plan"), size, cluster)
    except ConfigError:
        return False  # the batch cannot be shared so
    return found is not None and found.fits
