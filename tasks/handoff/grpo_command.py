"""The open-instruct GRPO command that starts from a hand-off, after its scripts/train/tulu3/grpo_fast_8b.sh.

``--chat_template_name`` is left out: GRPO then uses the checkpoint's own template, the one DPO trained with. The batch
and rollout sizes are that script's, for 2 nodes of 8 GPUs; fit them to the machine. The script still names
``--max_token_length``, which the program has not known since 2025-10; a test holds every flag against a list of those that a
named commit knows.
"""

import shlex

from tasks.handoff.config import GrpoConfig
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tasks.text.escape import shell_word


def _eval_mixer(mixer_list: str) -> str:
    """16 rows of each set of the mixture, as in the script."""
    names = shlex.split(mixer_list)[::2]
    return " ".join(f"{shell_word(name)} 16" for name in names)


def grpo_command(uploaded: UploadedCheckpoint, config: GrpoConfig, name: str) -> str:
    """Return the command as one shell text, one option a line. A Hub checkpoint is named with its commit, a directory
    by path.
    """
    where = str(uploaded.directory) if uploaded.kind == "directory" else str(uploaded.repo_id)
    prefix = f"HF_ENDPOINT={shell_word(uploaded.endpoint)} " if uploaded.endpoint else ""
    options = [f"--exp_name {shell_word(name + '-grpo')}", f"--model_name_or_path {shell_word(where)}"]
    if uploaded.kind == "hub":
        options.append(f"--model_revision {shell_word(uploaded.revision)}")
    mixer = " ".join(shell_word(word) for word in shlex.split(config.grpo_dataset))
    options += [
        f"--beta {config.grpo_beta:g}",
        f"--learning_rate {config.grpo_learning_rate:g}",
        f"--dataset_mixer_list {mixer}",
        "--dataset_mixer_list_splits train",
        f"--dataset_mixer_eval_list {_eval_mixer(config.grpo_dataset)}",
        "--dataset_mixer_eval_list_splits train",
        "--max_prompt_token_length 2048 --response_length 2048 --pack_length 4096",
        "--num_unique_prompts_rollout 48 --num_samples_per_prompt_rollout 16",
        "--kl_estimator 2 --temperature 1.0 --total_episodes 2000000",
        "--apply_verifiable_reward true --non_stop_penalty True --non_stop_penalty_value 0.0",
        "--deepspeed_stage 2 --per_device_train_batch_size 1 --num_mini_batches 2 --num_epochs 1",
        "--num_learners_per_node 6 --vllm_tensor_parallel_size 1 --vllm_num_engines 10",
        "--lr_scheduler_type constant --gradient_checkpointing --seed 1 --save_freq 40 --local_eval_every 25",
        "--push_to_hub false",  # its default is to publish what it trains
    ]
    return prefix + " \\\n    ".join(["python open_instruct/grpo_fast.py", *options])
