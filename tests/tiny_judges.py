"""Judges for tests: a random sequence classifier, and jobs over made answers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from dpo_core.contract.jobs import AnswerPair, EvaluateResult
from dpo_core.contract.judge_job import EndpointJudge, JudgeJob, RewardModelJudge, content_of_answers
from dpo_core.contract.results import RESULT_FILE
from dpo_core.contract.store import write_json
from tests.tiny_models import make_tokenizer
from tests.tiny_stage import checkpoint_ref

ANSWERS = tuple(
    AnswerPair(
        prompt=f"Question {number}?", before="the sea " * (number % 4 + 1), after="a list " * (number % 3)
    )
    for number in range(7)
)


def make_reward_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, seed: int = 0, num_labels: int = 1
) -> Path:
    """Save a random 2-layer Llama with a head that scores, and its tokenizer. -> ``folder``"""
    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        num_labels=num_labels,
        initializer_range=0.3,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def judge_job(
    out_dir: Path,
    judge: RewardModelJudge | EndpointJudge | Path,
    answers: Sequence[AnswerPair] = ANSWERS,
    **fields: object,
) -> JudgeJob:
    """A job over ``answers``, which lie beside ``out_dir`` as an evaluation leaves them; a path is a reward model's."""
    evaluation = EvaluateResult(
        job_fingerprint="e",
        before={},
        after={},
        num_pairs=9,
        num_prompts=len(answers),
        answers=tuple(answers),
    )
    file = out_dir.parent / f"evaluate-{content_of_answers(answers)[:8]}" / RESULT_FILE
    write_json(file, evaluation)
    if isinstance(judge, Path):
        judge = RewardModelJudge(checkpoint=checkpoint_ref(judge))
    return JudgeJob(
        **{
            "judge": judge,
            "answers_file": file,
            "answers_content": content_of_answers(answers),
            "cache_dir": out_dir.parent / "judge-words",
        }
        | fields
    ).at(out_dir)
