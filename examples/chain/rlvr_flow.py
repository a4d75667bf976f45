"""The neighbour after the stage: verifies the hand-off, then a few GRPO steps with TRL and a reward that code decides."""

import json
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.states import State

from dpo_core.data.checkers import passes
from flows.post_training import already_started, check_same_handoff
from flows.rlvr_intake import rlvr_intake
from tasks.events.payloads import DpoCheckpointReady
from tasks.intake import AcceptedHandoff
from tasks.launch.compute_config import ComputeConfig


def keeps_instructions(completions: list, constraints: list, **_: object) -> list[float]:
    """The verifiable reward: 1 for an answer that keeps its instruction, 0 for another."""
    return [
        float(passes(completion[0]["content"], rules))
        for completion, rules in zip(completions, constraints, strict=True)
    ]


@task(name="GRPO with TRL", retries=0)
def train_grpo(accepted: AcceptedHandoff, prompts: Path, target: Path, max_steps: int) -> dict[str, float]:
    """``max_steps`` of GRPO from the handed-off checkpoint. -> mean reward of the first and of the last step"""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = Dataset.from_list([json.loads(line) for line in prompts.read_text().splitlines()])
    config = GRPOConfig(
        str(target / "trainer"),
        max_steps=max_steps,
        per_device_train_batch_size=16,
        num_generations=8,
        learning_rate=1e-3,
        max_completion_length=24,
        beta=0.01,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = GRPOTrainer(
        str(accepted.checkpoint.directory), reward_funcs=keeps_instructions, args=config, train_dataset=rows
    )
    trainer.train()
    trainer.save_model(str(target / "checkpoint"))
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    get_run_logger().info(
        "%d steps from %s, mean reward %.2f -> %.2f",
        len(rewards),
        accepted.checkpoint.uri,
        rewards[0],
        rewards[-1],
    )
    create_table_artifact(
        [{"step": number + 1, "mean reward": reward} for number, reward in enumerate(rewards)],
        key="grpo-rewards",
        description="Share of answers that keep their instruction, by step",
    )
    return {"first": rewards[0], "last": rewards[-1]}


@flow(name="trl-grpo", persist_result=False)
def trl_grpo(
    checkpoint: DpoCheckpointReady,
    prompts: Path,
    target: Path,
    store_root: Path = Path(".pairline"),
    max_steps: int = 6,
) -> dict[str, float] | State:
    """Intake (refuses what does not hold), then GRPO."""
    if state := already_started(checkpoint):
        return state
    check_same_handoff(checkpoint)
    accepted = rlvr_intake(checkpoint.handoff, store_root, ComputeConfig())
    return train_grpo(accepted, prompts, target, max_steps)
