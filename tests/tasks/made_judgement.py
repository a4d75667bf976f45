"""What a judge found, made up."""

from typing import Any

from dpo_core.contract.judgement import JudgeFigures


def judgement(wins: int = 30, ties: int = 2, losses: int = 8, **fields: Any) -> JudgeFigures:
    """An endpoint's figures over so many prompts; keywords replace fields."""
    size = wins + ties + losses
    values: dict[str, Any] = {
        "kind": "endpoint",
        "model": "judge-7b",
        "num_prompts": size,
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "win_rate": (wins + ties / 2) / size,
        "win_rate_stderr": 0.05,
        "length_controlled": 0.6,
        "length_controlled_stderr": 0.06,
        "characters_before": 412.0,
        "characters_after": 530.4,
        "agreement": 0.825,
        "first_chosen": 0.54,
        "prompt_tokens": 40_000,
        "completion_tokens": 8_000,
    }
    return JudgeFigures(**values | fields)
