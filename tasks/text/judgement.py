"""What a judge found, in words and as rows: report, artifacts, model card and the question to an approver say the same."""

from dpo_core.contract.judgement import JudgeFigures
from tasks.text.scores import with_error


def how_it_judged(judgement: JudgeFigures) -> str:
    """Return who judged, how, and what the rates are, as sentences."""
    how = (
        "scored each answer; a preference is the sigmoid of the two scores' difference"
        if judgement.kind == "reward_model"
        else "compared the answers to each prompt in both orders"
    )
    return (
        f"{judgement.model} {how}. The win rate is the mean preference for the trained model's greedy answers over the SFT "
        "model's; length-controlled, that of answers of equal length (AlpacaEval 2, arXiv 2404.04475). 0.5 is no "
        "difference. Behind ± the standard error."
    )


def judgement_rows(
    judgement: JudgeFigures, price_in: float = 0.0, price_out: float = 0.0
) -> list[dict[str, str]]:
    """Return one row a figure. ``price_*``: of a million tokens; without them no cost is told."""
    controlled = (
        "-"
        if judgement.length_controlled is None
        else with_error(judgement.length_controlled, judgement.length_controlled_stderr)
    )
    found = {
        "win rate": with_error(judgement.win_rate, judgement.win_rate_stderr),
        "win rate, length-controlled": controlled,
        "won, tied, lost": f"{judgement.wins:,}, {judgement.ties:,}, {judgement.losses:,}",
        **({"ties of the same answer twice": f"{judgement.same:,}"} if judgement.same else {}),
        "characters an answer": f"{judgement.characters_before:,.0f} → {judgement.characters_after:,.0f}",
    }
    if judgement.agreement is not None:
        found["same verdict in both orders"] = f"{judgement.agreement:.0%}"
    if judgement.first_chosen is not None:
        found["verdicts for the first answer"] = f"{judgement.first_chosen:.0%}"
    if judgement.unreadable:
        found["prompts without a readable verdict"] = f"{judgement.unreadable:,}"
    if judgement.cut:
        found["answers whose prompt was cut"] = f"{judgement.cut:,}"
    if judgement.prompt_tokens or judgement.completion_tokens:
        found["tokens, in and out"] = f"{judgement.prompt_tokens:,}, {judgement.completion_tokens:,}"
        if cost := judgement.cost(price_in, price_out):
            found["cost"] = f"{cost:,.4g}"
    return [{"figure": name, "value": value} for name, value in found.items()]
