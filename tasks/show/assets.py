"""Mixture, reference values and checkpoint as Prefect assets, for those who build on asset events.

They are emitted as ``@materialize`` would emit them, but at the end of a run and from its files: nothing waits for them and
nothing can fail by them. A result that was found done in the store was materialised by an earlier run and is not told again.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.assets import Asset, AssetProperties
from prefect.context import AssetContext
from prefect.events import emit_event

from dpo_core.contract.visible import one_line
from tasks.report.lineage import LineageNode, lineage
from tasks.run.files import RunFiles, read_run_files
from tasks.show.artifacts import never_fails
from tasks.text.escape import markdown_text

MATERIALIZED, REFERENCED = "prefect.asset.materialization.succeeded", "prefect.asset.referenced"
LONGEST_KEY, REFUSED_LETTERS = 500, re.compile(r"[^\w./:@+-]")  # of Prefect's asset keys
STEPS = {
    "mixture": "mix",
    "reference": "reference",
    "export": "export",
}  # node of the lineage -> job that makes it
NAMES = {"mixture": "mixture", "reference": "reference", "export": "checkpoint"}


@dataclass(frozen=True, slots=True)
class Materialization:
    """One asset that this run made, what it was made from, and what is told of it."""

    asset: Asset
    made_from: tuple[Asset, ...]
    metadata: dict[str, Any]


def asset_key(family: str, name: str) -> str:
    """Return a key, stable over the runs of a family, as an asset's history is kept by key: pairline://<name>/mixture."""
    return f"pairline://{family}/{name}"


def materializations(run: RunFiles) -> list[Materialization]:
    """Return the assets that the run made itself."""
    nodes = {node.name: node for node in lineage(run)}
    started = {job.step for job in run.record.jobs if not job.reused}
    family = run.record.name
    uploaded = run.handoff.checkpoint.uri if run.handoff else None
    made = []
    for name, step in STEPS.items():
        if name not in nodes or step not in started:
            continue
        node = nodes[name]
        url = uploaded if name == "export" else None
        place: dict[str, Any] = {"url": url} if url else {}  # an asset without one leaves the field unset
        asset = Asset(
            key=asset_key(family, NAMES[name]),
            properties=AssetProperties(name=f"{family} {NAMES[name]}", description=node.what, **place),
        )
        origins = _origins(nodes, node)
        made.append(
            Materialization(
                asset,
                tuple(map(_upstream(family), origins)),
                {"fingerprint": node.pin, "path": node.where, "uri": url, "run": run.folder.name},
            )
        )
    return made


def _origins(nodes: dict[str, LineageNode], node: LineageNode) -> list[LineageNode]:
    """The nearest assets or sources that a node was made from."""
    found: list[LineageNode] = []
    for name in node.made_from:
        if name in nodes:
            origin = nodes[name]
            found += [origin] if name in NAMES or not origin.made_from else _origins(nodes, origin)
    return found


def _upstream(family: str) -> Callable[[LineageNode], Asset]:
    def asset(node: LineageNode) -> Asset:
        if node.name in NAMES:
            return Asset(key=asset_key(family, NAMES[node.name]))
        where = node.where if "://" in node.where else f"source://{node.where.lstrip('/')}"
        properties = AssetProperties(
            name=one_line(node.where), description=markdown_text(f"{node.what}, {node.pin}")
        )
        return Asset(key=REFUSED_LETTERS.sub("-", where)[:LONGEST_KEY], properties=properties)

    return asset


@never_fails
def emit_assets(folder: Path) -> None:
    """Emit the events of all assets that the run in ``folder`` made."""
    for made in materializations(read_run_files(folder)):
        for asset in made.made_from:
            emit_event(event=REFERENCED, resource=AssetContext.asset_as_resource(asset), related=[])
        emit_event(
            event=MATERIALIZED,
            resource=AssetContext.asset_as_resource(made.asset),
            payload=made.metadata,
            related=[AssetContext.asset_as_related(asset) for asset in made.made_from],
        )
