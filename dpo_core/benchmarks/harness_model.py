"""The checkpoint as lm-evaluation-harness asks it: its own wrapper of transformers' models, one copy in each process, or
of vLLM, on the first process's accelerator."""

import logging

import torch
from accelerate import Accelerator
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from dpo_core.contract.benchmark_job import BenchmarkJob
from dpo_core.data.tokenizer import load_tokenizer
from dpo_core.engine.host_memory import free_bytes

log = logging.getLogger(__name__)
MOST_ROWS = 16  # on a CPU more are no faster
BYTES_PER_LOGIT = 8  # as fp32, and once more as log-probabilities
SHARE_OF_MEMORY = 0.25
LONGEST_TRIED = 8192  # the library's own search for a batch size begins with rows of the longest length that the model takes
USUAL_LENGTH = 2048  # of tasks' longest requests


def load_harness_model(job: BenchmarkJob, accelerator: Accelerator) -> TemplateLM | None:
    """Return the model as the job's back end has it; None on ranks that have nothing to answer."""
    if job.back_end == "hf":
        return load_transformers_model(job, accelerator)
    return load_vllm_model(job) if accelerator.is_main_process else None


def load_vllm_model(job: BenchmarkJob) -> TemplateLM:
    """Return the library's wrapper of vLLM, which finds batches by its own memory."""
    checkpoint = job.checkpoint
    model = get_model("vllm")(
        pretrained=str(checkpoint.path),
        trust_remote_code=checkpoint.allow_remote_code,
        max_model_len=job.max_length_tokens,
        batch_size=job.batch_size,
    )
    if job.chat_template:
        # It keeps a second one, which it found by itself.
        model.hf_chat_template = model.tokenizer.chat_template = _chat_template(job)
    return model


def _chat_template(job: BenchmarkJob) -> str:
    checkpoint = job.checkpoint
    tokenizer = load_tokenizer(checkpoint.path, job.template, checkpoint.allow_remote_code, job.add_bos)
    return tokenizer.chat_template


def load_transformers_model(job: BenchmarkJob, accelerator: Accelerator) -> HFLM:
    """Return the model in the number format of its files, with documents shared out among the processes.

    Raises ``CheckpointError`` for a checkpoint without a chat template where one is asked for.
    """
    checkpoint, device = job.checkpoint, accelerator.device.type
    model = HFLM(
        pretrained=str(checkpoint.path),
        device=device,
        max_length=job.max_length_tokens,
        trust_remote_code=checkpoint.allow_remote_code,
    )
    if job.chat_template:
        model.tokenizer.chat_template = _chat_template(job)
    model.batch_size_per_gpu = batch_size(job, model, device)
    # It shares documents out on cards alone, and by the rank on its machine, which two machines have twice.
    model._rank, model._world_size = accelerator.process_index, accelerator.num_processes
    log.info("lm-eval: %s requests a forward on %s", model.batch_size_per_gpu, accelerator.device)
    return model


def batch_size(job: BenchmarkJob, model: HFLM, device: str) -> int | str:
    """Return the requests of a forward: the job's, or by memory, as the library finds on a card by trying."""
    if job.batch_size != "auto":
        return job.batch_size
    if device == "cpu":
        return rows_that_fit(model.max_length, model.vocab_size, free_bytes())
    if model.max_length <= LONGEST_TRIED:
        return "auto"
    return rows_that_fit(USUAL_LENGTH, model.vocab_size, torch.cuda.mem_get_info()[0])


def rows_that_fit(length: int, vocabulary: int, free: int) -> int:
    """Return how many rows a quarter of the ``free`` bytes takes; most of a row is its logits."""
    rows = int(SHARE_OF_MEMORY * free / (BYTES_PER_LOGIT * length * vocabulary))
    return min(MOST_ROWS, max(1, rows))
