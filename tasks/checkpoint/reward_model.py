"""A reward model as a pinned local snapshot, from a Hub id or a directory as SFT checkpoints are."""

from pathlib import Path

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.judge_config import JudgeConfig
from dpo_core.contract.judge_job import RewardModelJudge
from tasks.checkpoint.source import locate, snapshot

# It is asked with its own template, or as a pair of texts where it has none: no checkpoint is refused for lack of one.
NEEDS_NO_TEMPLATE = "chatml"


def fetch_reward_model(judge: JudgeConfig, store: Path) -> RewardModelJudge:
    """Return the judge with its snapshot. Raises ``CheckpointError`` for one that cannot be used, ``RemoteError``."""
    config = CheckpointConfig(source=judge.model, revision=judge.revision, chat_template=NEEDS_NO_TEMPLATE)
    located = locate(config, store)
    if located.weights.kind != "safetensors":
        raise CheckpointError(
            f"judge.model {judge.model} has its weights as {located.weights.kind}, and a judge is loaded from safetensors. "
            "Use a checkpoint that has them."
        )
    return RewardModelJudge(
        checkpoint=snapshot(located, config, store),
        max_length_tokens=judge.max_length_tokens,
        tokens_per_batch=judge.tokens_per_batch,
    )
