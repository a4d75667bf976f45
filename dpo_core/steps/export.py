"""Step ``export``: trained weights and the parent's tokenizer -> a folder that stock transformers loads.

The folder holds safetensors weights, config, generation config, tokenizer and chat template; no optimizer state. It is
loaded again before it counts as written. The pad token is made fit for RLVR (``dpo_core.model.pad_token``).

An adapter is merged into the weights, and stands by itself in ``adapter/`` as well, in peft's format for the parent model.
"""

import json
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from dpo_core.contract.checkpoint_files import CONFIG, tokenizer_fingerprint, weights_fingerprint
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.jobs import ExportJob, ExportResult
from dpo_core.contract.progress import Progress
from dpo_core.contract.store import hash_files, new_directory
from dpo_core.data.tokenizer import load_tokenizer
from dpo_core.engine.checkpoint import load_weights, model_tensors
from dpo_core.model.adapter import ADAPTER_FOLDER, load_policy, merge_adapter, save_adapter
from dpo_core.model.export_form import DTYPES, apply_pad_token
from dpo_core.model.generation_settings import writable
from dpo_core.model.load import load_in_full, load_model, with_loading_info
from dpo_core.model.unread_weights import is_converted


def _check_loads(folder: Path, expected: PreTrainedModel, allow_remote_code: bool) -> None:
    """Load the folder with stock transformers and compare every tensor."""
    loaded, info = with_loading_info(folder, dtype="auto", trust_remote_code=allow_remote_code)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise CheckpointError(
            f"The export does not load cleanly: missing {sorted(info['missing_keys'])[:5]}, unexpected "
            f"{sorted(info['unexpected_keys'])[:5]}. This is a defect of the export step."
        )
    got = model_tensors(loaded)
    for name, tensor in model_tensors(expected).items():
        if not torch.equal(tensor, got[name]):
            raise CheckpointError(
                f"The export changed {name} while writing it. Check the disk and run again."
            )


def trained_model(job: ExportJob, aside: Path) -> PreTrainedModel:
    """Return the trained model as a plain one, in the export's precision where all weights were trained, which are read one
    at a time; else in float32: an adapter is written to ``aside/adapter`` and merged from there.
    """
    if job.adapter.kind == "none":
        model = load_model(job.checkpoint, dtype=DTYPES[job.precision], read_weights=False)
        if is_converted(model):  # the reading notes how the files' own form is written again
            model = load_model(job.checkpoint)
        load_weights(job.weights_path, model)
        return model
    device = "cuda" if job.adapter.base_weights == "nf4" and torch.cuda.is_available() else "cpu"
    policy = load_policy(job.checkpoint, job.adapter, seed=0, device=device)
    load_weights(job.weights_path, policy)
    save_adapter(policy, aside / ADAPTER_FOLDER, job.checkpoint)
    del policy
    return merge_adapter(
        load_in_full(job.checkpoint, job.adapter.base_weights, device), aside / ADAPTER_FOLDER
    ).cpu()


def run(job: ExportJob, progress: Progress) -> ExportResult:
    """Write the export and verify that it loads."""
    progress.begin("export", 3, "parts")
    transformers_logging.disable_progress_bar()
    tokenizer = load_tokenizer(
        job.checkpoint.path, job.chat_template, job.checkpoint.allow_remote_code, job.add_bos
    )
    path = job.out_dir / "checkpoint"
    with new_directory(path) as aside:
        model = trained_model(job, aside)
        model.config.get_text_config().use_cache = model.config.use_cache = True
        model.to(DTYPES[job.precision])  # type: ignore[arg-type]  # transformers wraps it and loses `self`
        if model.generation_config is not None:
            model.generation_config = writable(model.generation_config)
        apply_pad_token(model, tokenizer)
        progress.advance()
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        if job.checkpoint.allow_remote_code:
            for source in Path(job.checkpoint.path).glob("*.py"):
                shutil.copy2(source, aside)
        progress.advance()
        _check_loads(aside, model, job.checkpoint.allow_remote_code)
        files = hash_files(aside)
    progress.advance()
    adapter_path = None if job.adapter.kind == "none" else path / ADAPTER_FOLDER
    return ExportResult(
        job_fingerprint=job.fingerprint,
        path=path,
        adapter_path=adapter_path,
        files=files,
        fingerprint=weights_fingerprint(json.loads((path / CONFIG).read_bytes()), files),
        tokenizer_fingerprint=tokenizer_fingerprint(files),
    )
