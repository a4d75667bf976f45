"""What a checkpoint is made of: from source revisions to the uploaded commit, as a graph and as a table."""

from dataclasses import dataclass

from dpo_core.contract.data_jobs import MixResult
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.refs import CheckpointRef
from tasks.report.svg import Chart, framed, text
from tasks.run.files import RunFiles
from tasks.text.escape import html_text

NODE_WIDTH, NODE_HEIGHT, GAP_X, GAP_Y, NUM_COLUMNS = 130.0, 58.0, 28.0, 16.0, 7
MAX_LETTERS, TITLE = 18, "What this checkpoint is made of"


@dataclass(frozen=True, slots=True)
class LineageNode:
    """One artefact. ``pin`` fixes its content: a commit or a fingerprint; ``column`` is its place from left to right."""

    name: str
    what: str
    where: str
    pin: str
    column: int
    made_from: tuple[str, ...] = ()


def _of_data(mixture: MixResult) -> list[LineageNode]:
    sources = [
        LineageNode(f"source {number}", "preference set", ledger.label, ledger.content, 0)
        for number, ledger in enumerate(mixture.per_source)
    ]
    before = (*(source.name for source in sources), "policy")
    return [
        *sources,
        LineageNode("mixture", "mixture", str(mixture.data.path), mixture.data.fingerprint, 1, before),
    ]


def lineage(run: RunFiles) -> list[LineageNode]:
    """Return from the sources to the hand-off, as far as the run has come."""
    nodes: list[LineageNode] = []
    train = run.steps["train"].job if "train" in run.steps else None
    policy = _policy(run)
    if policy:
        nodes.append(LineageNode("policy", "SFT checkpoint", policy.source, _pin(policy), 0))
    other = train.reference_checkpoint if isinstance(train, TrainJob) else None
    reference_model = "policy"
    if other and policy and other.fingerprint != policy.fingerprint:
        reference_model = "reference model"
        nodes.append(LineageNode(reference_model, "reference model", other.source, _pin(other), 0))
    if mixture := run.mixture:
        nodes += _of_data(mixture)
    if run.reference:
        ref = run.reference.reference
        nodes.append(
            LineageNode(
                "reference",
                "reference values",
                str(ref.path),
                ref.fingerprint,
                2,
                ("mixture", reference_model),
            )
        )
    if trained := run.trained:
        before = ("reference", "mixture", "policy") if run.reference else ("mixture", "policy")
        nodes.append(
            LineageNode(
                "weights",
                "trained weights",
                str(trained.weights_path),
                trained.weights_fingerprint,
                3,
                before,
            )
        )
    if exported := run.exported:
        nodes.append(
            LineageNode(
                "export", "exported checkpoint", str(exported.path), exported.fingerprint, 4, ("weights",)
            )
        )
    if handoff := run.handoff:
        upload = handoff.checkpoint
        nodes += [
            LineageNode("upload", "uploaded checkpoint", upload.uri, upload.revision, 5, ("export",)),
            LineageNode(
                "handoff", "hand-off to RLVR", str(run.handoff_path), handoff.fingerprint, 6, ("upload",)
            ),
        ]
    return nodes


def _policy(run: RunFiles) -> CheckpointRef | None:
    for name, attribute in (("train", "checkpoint"), ("reference", "checkpoint"), ("evaluate", "before")):
        job = run.steps[name].job if name in run.steps else None
        if isinstance(ref := getattr(job, attribute, None), CheckpointRef):
            return ref
    return None


def _pin(checkpoint: CheckpointRef) -> str:
    return f"commit {checkpoint.revision}" if checkpoint.revision else checkpoint.fingerprint


def lineage_chart(nodes: list[LineageNode]) -> Chart | None:
    """Return boxes from left to right; an arrow from each to what is made of it. The SFT checkpoint stands on top,
    where its arrows pass above the mixture."""
    if not nodes:
        return None
    first = [node for node in nodes if node.column == 0]
    sources = [place for place, node in enumerate(first) if node.what == "preference set"]
    main_row = sum(sources) / len(sources) if sources else 0.0
    places = {node.name: _place(0, row) for row, node in enumerate(first)}
    places |= {node.name: _place(node.column, main_row) for node in nodes if node.column}
    width, height = _place(NUM_COLUMNS, 0)[0] - GAP_X + 4, _place(0, len(first))[1]
    arrows = [
        _arrow(places[source], places[node.name])
        for node in nodes
        for source in node.made_from
        if source in places
    ]
    boxes = [_box(node, *places[node.name]) for node in nodes]
    said = "; ".join(
        f"{node.what} {node.pin[:12]}" + (f" from {', '.join(node.made_from)}" if node.made_from else "")
        for node in nodes
    )
    return framed(
        text(4, 16, TITLE, "title") + "".join(arrows + boxes),
        TITLE,
        f"Lineage: {said}",
        width,
        height,
        is_wide=True,
    )


def _place(column: int, row: float) -> tuple[float, float]:
    return 4 + column * (NODE_WIDTH + GAP_X), 30 + row * (NODE_HEIGHT + GAP_Y)


def _arrow(source: tuple[float, float], target: tuple[float, float]) -> str:
    """Level until shortly before the target, then down or up to it, from below the others if it is on their level."""
    x1, y1, x2, y2 = (
        source[0] + NODE_WIDTH,
        source[1] + NODE_HEIGHT / 2,
        target[0],
        target[1] + NODE_HEIGHT / 2,
    )
    turn = x2 - GAP_X
    level = f"M{x1} {y1:.1f}L{turn} {y1:.1f}"
    if y1 == y2 and turn > x1:  # boxes stand between
        low = y1 + NODE_HEIGHT / 2 + GAP_Y / 2
        level = (
            f"M{x1} {y1 + 8:.1f}C{x1 + GAP_X / 2} {y1 + 8:.1f} {x1 + 4} {low:.1f} {x1 + GAP_X} {low:.1f}"
            f"L{turn} {low:.1f}"
        )
        y1 = low
    return (
        f'<path d="{level}C{turn + GAP_X * 0.6:.1f} {y1:.1f} {turn + GAP_X * 0.3:.1f} {y2:.1f} {x2 - 6} {y2:.1f}" '
        f'class="edge"/><path d="M{x2 - 6} {y2 - 4:.1f}v8l6 -4z" class="arrow"/>'
    )


def _box(node: LineageNode, x: float, y: float) -> str:
    name = node.where.rstrip("/").rsplit("/", 1)[-1] if "/" in node.where else node.where
    pin = node.pin.removeprefix("commit ")[:16]
    return (
        f"<g><title>{html_text(node.where)}\n{html_text(node.pin)}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="8" class="node"/>'
        + text(x + 9, y + 18, node.what, "")
        + text(x + 9, y + 34, _cut(name), "tick")
        + text(x + 9, y + 49, pin, "pin")
        + "</g>"
    )


def _cut(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 8]}…{name[-7:]}"
