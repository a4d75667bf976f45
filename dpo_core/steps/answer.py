"""Step ``answer``: load a checkpoint from where it finally is, with stock transformers, and have it answer prompts.

This is the proof that a hand-off can be used; it looks at nothing but the files of that place.
"""

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.jobs import AnswerJob, AnswerResult
from dpo_core.contract.progress import Progress
from dpo_core.contract.store import verify_files
from dpo_core.data.render_limits import rendered_by_library
from dpo_core.model.generate import Generation, answer_greedily, end_token_ids
from dpo_core.model.load import with_loading_info

PROMPTS_PER_BATCH = 8


def _load(job: AnswerJob) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    path, code = job.checkpoint_path, job.allow_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=code, local_files_only=True)
        model, loading = with_loading_info(
            path, dtype=torch.float32, trust_remote_code=code, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # transformers raises nearly anything for files that do not fit together
        raise CheckpointError(
            f"{path} cannot be loaded by transformers: {type(error).__name__}: {error}"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise CheckpointError(
            f"{path} lacks weights that its config.json calls for: {', '.join(missing[:5])}. Export it again."
        )
    if not tokenizer.chat_template:
        raise CheckpointError(f"{path} has no chat template, so no prompt can be asked. Export it again.")
    return model.eval(), tokenizer


@torch.no_grad()
def _check_finite(model: PreTrainedModel, prompt_ids: list[int], job: AnswerJob) -> None:
    if not torch.isfinite(model(input_ids=torch.tensor([prompt_ids])).logits).all():
        raise CheckpointError(
            f"{job.checkpoint_path} answers with NaN or infinite logits: its weights are damaged, or "
            "training diverged. Look at the training metrics, lower the learning rate."
        )


def run(job: AnswerJob, progress: Progress) -> AnswerResult:
    """Verify, load, answer (see ``jobs.AnswerJob``). Raises ``StoreError`` for a damaged file, ``CheckpointError``."""
    progress.begin("answer", total=len(job.prompts), unit="prompts")
    verify_files(job.checkpoint_path, job.files)
    model, tokenizer = _load(job)
    prompts_ids = []
    for prompt in job.prompts:
        text = rendered_by_library(
            tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True
        )
        prompts_ids.append(tokenizer.encode(text, add_special_tokens=False))
    if prompts_ids:
        _check_finite(model, prompts_ids[0], job)
    generation = Generation(job.max_new_tokens, PROMPTS_PER_BATCH)
    answers = answer_greedily(model, tokenizer, prompts_ids, generation, progress.advance)
    return AnswerResult(
        job_fingerprint=job.fingerprint,
        answers=tuple(answers),
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        eos_token_ids=end_token_ids(model, tokenizer),
        vocab_size=model.get_input_embeddings().get_parameter("weight").shape[0],
        tokenizer_size=len(tokenizer),
        num_parameters=model.num_parameters(),
        prompts_ids=tuple(tuple(ids) for ids in prompts_ids),
    )
