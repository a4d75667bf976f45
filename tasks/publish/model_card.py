"""The model card (README.md) of an uploaded checkpoint: where it comes from, how it was made, what it measured."""

from dpo_core.contract.benchmarks import Benchmarks
from dpo_core.contract.config import AdapterConfig, OptimConfig, TrainConfig
from dpo_core.contract.data_jobs import SourceLedger
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.keep_best import BestStep
from dpo_core.contract.loss_config import Loss, LossConfig
from dpo_core.contract.metric_names import HEADLINE
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.section import Section
from tasks.text.escape import markdown_code, markdown_rows, markdown_text, yaml_text
from tasks.text.judgement import how_it_judged, judgement_rows
from tasks.text.scores import TITLES, benchmark_rows, how_they_were_put

WITH_A_ROW = (
    "name",
    "beta",
    "label_smoothing",
    "gamma_beta_ratio",
)  # settings of a loss; others are told where set


class CardInputs(Section):
    """What the card tells. Nothing that differs between two identical runs: the card is part of what is published."""

    name: str
    parent: CheckpointRef | None = None  # known once it is fetched
    sources: tuple[SourceLedger, ...] = ()
    train_rows: int = 0
    held_out_rows: int = 0
    data_fingerprint: str = ""
    loss: Loss = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    adapter: AdapterConfig = AdapterConfig()
    trained_parameters: int = 0
    all_parameters: int = 0
    steps: int = 0
    best: BestStep | None = None  # whose weights these are; None: the last step's
    metrics_before: dict[str, float] = {}
    metrics_after: dict[str, float] = {}
    benchmarks: Benchmarks | None = None
    judgement: JudgeFigures | None = None


class OurMarkdown(str):
    """What a cell says in our own words."""


def _cell(value: object) -> str:
    if isinstance(value, OurMarkdown):
        return value
    return f"{value:.4g}" if isinstance(value, float) else markdown_text(str(value))


def _table(header: list[str], rows: list[list[object]]) -> str:
    return markdown_rows(header, ([_cell(value) for value in row] for row in rows))


def _front_matter(parent: CheckpointRef) -> str:
    """The YAML that the Hub reads."""
    lines = [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [dpo, preference-tuning, pairline]",
    ]
    if "/" in parent.source and parent.revision:
        lines.append(f"base_model: {yaml_text(parent.source)}")
    return "\n".join(["---", *lines, "---"])


def _parent(parent: CheckpointRef) -> str:
    pinned = f"commit {markdown_code(parent.revision)}" if parent.revision else "pinned by its contents"
    source = parent.source if parent.revision else parent.source.rstrip("/").rpartition("/")[2]
    return f"{markdown_code(source)}, {pinned}; weights {markdown_code(parent.fingerprint)}."


def adapter_settings(card: CardInputs) -> dict[str, object]:
    """Return rows of the table of hyper-parameters."""
    adapter, targets = card.adapter, card.adapter.target_modules
    return {
        "adapter": OurMarkdown(f"{adapter.kind}, merged into these weights; by itself in `adapter/`"),
        "adapter rank": adapter.rank,
        "adapter alpha": adapter.alpha,
        "adapter targets": targets if isinstance(targets, str) else ", ".join(targets),
        "trained parameters": f"{card.trained_parameters:,} of {card.all_parameters:,}",
    }


def _objective(loss: Loss) -> dict[str, object]:
    """Rows of what was minimised; of a sum, one for each term."""
    if isinstance(loss, LossConfig):
        settings: dict[str, object] = {
            "loss": loss.name,
            "beta": loss.beta,
            "label smoothing": loss.label_smoothing,
        }
        if "gamma_beta_ratio" in loss.traits.own_settings:
            settings["gamma / beta"] = loss.gamma_beta_ratio
        return settings | {f"loss.{name}": value for name, value in _extras(loss).items()}
    settings = {"loss": loss.title}
    for number, (_, part) in enumerate(loss.parts, start=1):
        said = {"beta": part.beta} | {
            name: value
            for name, value in part.model_dump(exclude_defaults=True).items()
            if name not in ("name", "beta", "weight")
        }
        settings[f"loss, term {number}: {part.name}"] = ", ".join(
            f"{name} {value}" for name, value in said.items()
        )
    return settings


def _extras(loss: LossConfig) -> dict[str, object]:
    """Settings of the objective that have a row where they are not as usual."""
    return {
        name: value
        for name, value in loss.model_dump(exclude_defaults=True).items()
        if name not in WITH_A_ROW
    }


def _settings(card: CardInputs) -> dict[str, object]:
    """What was set, as far as it says something of this run."""
    settings: dict[str, object] = {
        **_objective(card.loss),
        "learning rate": card.optim.learning_rate,
        "schedule": card.optim.schedule,
        "warm-up ratio": card.optim.warmup_ratio,
        "weight decay": card.optim.weight_decay,
        "max gradient norm": card.optim.max_grad_norm,
        "global batch (pairs)": card.train.global_batch_pairs,
        "epochs": card.train.num_epochs,
        "optimizer steps": card.steps,
        "precision": card.train.precision,
        "seed": card.train.seed,
    }
    if card.adapter.kind != "none":
        settings |= adapter_settings(card)
    if card.train.float8 != "none":
        settings["float8"] = card.train.float8
    if card.optim.optimizer != "adamw":
        settings["optimizer"] = card.optim.optimizer
    if card.train.router_aux_loss_weight is not None:
        settings["router loss weight"] = card.train.router_aux_loss_weight
    return settings


def _chosen(card: CardInputs) -> list[str]:
    """Which step's weights these are, where one was chosen."""
    return (
        [f"The weights are {markdown_text(card.best.in_words.removeprefix('the weights '))}."]
        if card.best
        else []
    )


def _benchmarks(card: CardInputs) -> list[str]:
    """Tasks' scores, where there are any."""
    if card.benchmarks is None:
        return []
    rows: list[list[object]] = [list(row.values()) for row in benchmark_rows(card.benchmarks)]
    return ["## Benchmarks", how_they_were_put(card.benchmarks), _table(list(TITLES), rows)]


def _judge(card: CardInputs) -> list[str]:
    """What a judge found, where one was asked."""
    if card.judgement is None:
        return []
    rows: list[list[object]] = [list(row.values()) for row in judgement_rows(card.judgement)]
    return ["## Judge", markdown_text(how_it_judged(card.judgement)), _table(["figure", "value"], rows)]


def known_before_training(card: CardInputs) -> list[str]:
    """Return what stands in the card whatever the training gives: its title, what it starts from and its settings."""
    unknown = {"optimizer steps", "trained parameters"}
    rows = [[name, value] for name, value in _settings(card).items() if name not in unknown]
    settings = _table(["setting", "value"], rows).splitlines()
    inputs = [card.parent.fingerprint if card.parent else "", card.data_fingerprint]
    return [f"# {markdown_text(card.name)}", *(markdown_code(mark) for mark in inputs if mark), *settings]


def render_card(card: CardInputs) -> str:
    """Return the card as Markdown with the Hub's YAML header. Deterministic."""
    assert card.parent
    mixture = _table(
        ["source", "content", "rows", "kept", "truncated", "dropped"],
        [
            [s.label, s.content[:16], s.rows_in, s.kept, s.truncated, sum(s.dropped.values())]
            for s in card.sources
        ],
    )
    names = [name for name in card.metrics_after if name in HEADLINE] or list(card.metrics_after)
    metrics = _table(
        ["held-out metric", "before", "after"],
        [[name, card.metrics_before.get(name, ""), card.metrics_after[name]] for name in names],
    )
    return (
        "\n\n".join(
            [
                _front_matter(card.parent),
                f"# {markdown_text(card.name)}",
                "Aligned with direct preference optimization (DPO) from a supervised fine-tuned checkpoint.",
                "## Parent model",
                _parent(card.parent),
                "## Data",
                f"{card.train_rows} pairs trained on, {card.held_out_rows} held out by prompt; mixture "
                f"{markdown_code(card.data_fingerprint)}.",
                mixture,
                "## Hyper-parameters",
                _table(["setting", "value"], [[name, value] for name, value in _settings(card).items()]),
                *_chosen(card),
                "## Results",
                metrics if card.metrics_after else "No evaluation was run.",
                *_judge(card),
                *_benchmarks(card),
            ]
        )
        + "\n"
    )
