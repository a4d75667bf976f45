"""What a partition's nodes have at the least, and how long it lets a job run that asks for no time, as sinfo tells it."""

import re
from dataclasses import dataclass

from dpo_core.contract.errors import ConfigError
from tasks.launch.compute import Machine
from tasks.launch.slurm.client import node_lines

ROW = re.compile(
    r"^(?P<name>\S+)\|(?P<cores>\d+)\+?\|(?P<mib>\d+)\+?\|(?P<usual>\S+)\|(?P<longest>\S+)$", re.MULTILINE
)
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d\d)")


@dataclass(frozen=True, slots=True)
class NodeKind:
    """The least that a partition's nodes have. ``limit_minutes``: of its jobs that name none; None without a limit."""

    num_cores: int
    memory_bytes: int
    limit_minutes: int | None = None

    def machine(self, asked: Machine, parts: int) -> Machine:
        """Return what a step has of such a node, one of ``parts`` on it; ``asked``: what its recipe says."""
        memory_bytes = asked.memory_bytes or self.memory_bytes // parts
        return Machine(max(1, self.num_cores // parts), asked.num_gpus, memory_bytes)


class NodeKinds(dict[str, NodeKind]):
    """Those of partitions, by name, asked for once."""

    def __missing__(self, partition: str) -> NodeKind:
        self[partition] = least_node(partition)
        return self[partition]


def parse_nodes(text: str) -> NodeKind | None:
    """Return what sinfo's lines ``partition|cores|MiB|time of a job that names none|longest time`` have at the least; None
    for none. Where one is marked as the default (``*``), it is that one's. A site that says nothing of memory has nodes of
    1 MiB, Slurm's default: then it is 0, unknown."""
    rows = list(ROW.finditer(text))
    if not rows:
        return None
    rows = [row for row in rows if row["name"].endswith("*")] or rows
    least_mib = min(int(row["mib"]) for row in rows)
    limits = [_minutes(row["usual"]) or _minutes(row["longest"]) for row in rows]
    return NodeKind(
        min(int(row["cores"]) for row in rows),
        least_mib << 20 if least_mib > 1 else 0,
        min(filter(None, limits), default=None),
    )


def least_node(partition: str) -> NodeKind:
    """Return the least that a node of the partition has; empty for the default one. Raises ``ConfigError``,
    ``SlurmAway``."""
    kind = parse_nodes(node_lines(partition))
    if kind is None:
        raise ConfigError(
            f"The cluster has no partition {partition or '(default)'} with nodes.",
            "`sinfo` lists them; set slurm.partition (or slurm.partitions).",
        )
    return kind


def _minutes(said: str) -> int | None:
    """None for ``infinite``, ``n/a`` and whatever else is no time."""
    if (found := TIME.fullmatch(said)) is None:
        return None
    days, hours, minutes = (int(found[name] or 0) for name in ("days", "hours", "minutes"))
    return (days * 24 + hours) * 60 + minutes
