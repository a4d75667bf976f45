"""What a person sees who is asked to release a checkpoint, as Markdown. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from dpo_core.contract.benchmarks import Benchmarks
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import AnswerPair, EvaluateResult
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.keep_best import BestStep
from dpo_core.contract.metric_names import HEADLINE
from tasks.gate.rules import GateCheck, check_table
from tasks.report.looks import looks_of
from tasks.report.samples import informative
from tasks.report.tables import markdown_table, metrics_rows
from tasks.report.verdict import verdict_of
from tasks.sweep.outcomes import SweepOutcome
from tasks.text.escape import markdown_code, markdown_link, markdown_text
from tasks.text.judgement import judgement_rows
from tasks.text.scores import benchmark_rows

NUM_CHARACTERS = 400  # of a prompt or an answer
ARTIFACTS = ("report", "gate", "evaluation", "samples", "training-curves")


class Judged(NamedTuple):
    """What was measured of a checkpoint."""

    evaluation: EvaluateResult
    benchmarks: Benchmarks | None = None
    judgement: JudgeFigures | None = None
    best: BestStep | None = None
    sweep: SweepOutcome | None = None
    preferences: tuple[float | None, ...] = ()  # the judge's, one an answer


def question_markdown(
    name: str,
    candidate: str,
    checks: Sequence[GateCheck],
    judged: Judged,
    settings: EvaluationConfig,
    ui_url: str | None,
) -> str:
    """Return verdict, gate, evaluation and samples. ``candidate``: where the checkpoint is; ``ui_url``: of Prefect's pages,
    if known.
    """
    evaluation, benchmarks, judgement, best, sweep, preferences = judged
    gate = markdown_table(check_table(checks)) if checks else "No rule is set.\n"
    links = (
        " · ".join(markdown_link(key, f"{ui_url}/artifacts/key/{name}-{key}") for key in ARTIFACTS)
        if ui_url
        else ""
    )
    verdict = verdict_of(evaluation, settings.warnings, benchmarks, judgement, looks_of(best, sweep))
    said = (
        [verdict.in_words, *(sign.words for sign in verdict.signs)] if verdict else ["Nothing was measured."]
    )
    sections = {
        "Better?": "\n\n".join(map(markdown_text, said)) + "\n",
        "Gate": gate,
        f"{evaluation.num_pairs} held-out pairs, before and after": markdown_table(
            metrics_rows(evaluation, HEADLINE)
        ),
        **({"Judge": markdown_table(judgement_rows(judgement))} if judgement else {}),
        **({"Benchmarks": markdown_table(benchmark_rows(benchmarks))} if benchmarks else {}),
        "Samples": _samples(informative(evaluation.answers, settings.num_samples_shown, preferences)),
    }
    text = "\n".join(f"### {heading}\n\n{content}" for heading, content in sections.items())
    return (
        f"## Release {markdown_text(name)}?\n\n{markdown_code(candidate)}\n\napprove: it is uploaded and handed off. "
        f"reject: it stays there, and the run ends.\n\n{text}" + (f"\n{links}\n" if links else "")
    )


def _samples(answers: Sequence[AnswerPair]) -> str:
    """One below the other: the form that shows them is narrow."""
    signs = {True: " ✓", False: " ✗", None: ""}
    return (
        "\n".join(
            f"**{_cut(answer.prompt)}**\n\n- before{signs[answer.before_passes]}: {_cut(answer.before)}\n"
            f"- after{signs[answer.after_passes]}: {_cut(answer.after)}\n"
            for answer in answers
        )
        or "None.\n"
    )


def _cut(text: str) -> str:
    return markdown_text(text if len(text) <= NUM_CHARACTERS else text[:NUM_CHARACTERS] + " ...")
