"""What the task counts: whether an answer keeps its prompt's instructions, as Pairline's evaluation does."""

from dpo_core.data.checkers import passes


def instructions_kept(document: dict, answers: list[str]) -> dict[str, float]:
    """Return 1 where the answer keeps all of them."""
    return {"instructions_kept": float(passes(answers[0].strip(), document["constraints"]))}
