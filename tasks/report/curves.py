"""The training curves as a picture."""

import base64
import io
import json
from pathlib import Path

from dpo_core.store import write_bytes

PANELS = (("Loss", ("loss",)), ("Reward accuracy", ("rewards/accuracies",)),
          ("Rewards", ("rewards/chosen", "rewards/rejected", "rewards/margins")),
          ("Gradient norm", ("grad_norm",)), ("Learning rate", ("learning_rate",)),
          ("Tokens per second", ("tokens_per_second",)))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The steps of a ``metrics.jsonl``, oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def picture_inside(picture: Path) -> str:
    """Markdown that carries the picture itself: a page of Prefect's cannot reach the store's files."""
    return f"![training curves](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"


def draw_curves(metrics_path: Path) -> Path:
    """``curves.png`` beside ``metrics.jsonl``, drawn once. -> its path"""
    picture = metrics_path.with_name("curves.png")
    if picture.is_file() and picture.stat().st_mtime >= metrics_path.stat().st_mtime:
        return picture
    from matplotlib.figure import Figure  # here: a second is spent on this import only where a picture is drawn

    steps = read_metrics(metrics_path)
    numbers = [step["step"] for step in steps]
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for name in names:
            axes.plot(numbers, [step.get(name, float("nan")) for step in steps], marker="." if len(steps) < 40 else "",
                      label=name.rsplit("/", 1)[-1])
        axes.set_title(title)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    write_bytes(picture, content.getvalue())
    return picture
