"""Step ``export``: trained weights and the parent's tokenizer -> a folder that stock transformers loads.

The folder holds safetensors weights, config, generation config, tokenizer and chat template; no optimizer state. Weights go
from file to file one tensor at a time, so memory follows from the largest tensor and not from the model. What was written is
read again, and loaded by its names and shapes, before it counts. The pad token is made fit for RLVR
(``dpo_core.model.pad_token``).

An adapter is merged into the weights, and stands by itself in ``adapter/`` as well, in peft's format for the parent model.
"""

import contextlib
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
from dpo_core.engine.checkpoint import load_weights
from dpo_core.engine.hub_files import write_weights
from dpo_core.model.adapter import ADAPTER_FOLDER, load_policy, merge_adapter, save_adapter
from dpo_core.model.export_form import DTYPES, apply_pad_token
from dpo_core.model.four_bits import rounding
from dpo_core.model.generation_settings import make_settings_writable
from dpo_core.model.load import WITHOUT_MEMORY, load_in_full, load_model, with_loading_info
from dpo_core.model.trained_weights import HeldWeights, StoredWeights, TrainedWeights, trained_in, updates_of
from dpo_core.model.unread_weights import is_converted, weights_in


def _check_loads(folder: Path, expected: PreTrainedModel, allow_remote_code: bool) -> None:
    """Have stock transformers look at the folder, without values, and compare names, shapes and number formats."""
    loaded, info = with_loading_info(
        folder, dtype="auto", device_map=WITHOUT_MEMORY, trust_remote_code=allow_remote_code
    )
    wrong = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    got, wanted = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
        for model in (loaded, expected)
    )
    wrong["changed"] = sorted(name for name in got | wanted if got.get(name) != wanted.get(name))
    if any(wrong.values()):
        said = ", ".join(f"{kind} {names[:5]}" for kind, names in wrong.items() if names)
        raise CheckpointError(
            f"The export does not load cleanly: {said}. This is a defect of the export step."
        )


def trained_weights(job: ExportJob, model: PreTrainedModel, aside: Path) -> TrainedWeights:
    """Return what was trained, for a model without values; an adapter is written to ``aside/adapter`` first.

    The checkpoint's weights are in memory as a whole where an adapter goes with files of other tensors than the model's.
    """
    if job.adapter.kind == "none":
        return trained_in(job.weights_path, model)
    files = None if is_converted(model) else weights_in(job.checkpoint.path, model)
    policy = load_policy(
        job.checkpoint,
        job.adapter.model_copy(update={"kind": "lora"}),  # the base's numbers play no part in it
        seed=0,
        where={"read_weights": False},
    )
    load_weights(job.weights_path, policy)
    save_adapter(policy, aside / ADAPTER_FOLDER, job.checkpoint)
    if files:
        return StoredWeights(
            files, updates_of(policy), rounding(model) if job.adapter.base_weights == "nf4" else {}
        )
    del policy
    device = "cuda" if job.adapter.base_weights == "nf4" and torch.cuda.is_available() else "cpu"
    whole = load_in_full(job.checkpoint, job.adapter.base_weights, device)
    return HeldWeights(merge_adapter(whole, aside / ADAPTER_FOLDER).state_dict())


def run(job: ExportJob, progress: Progress) -> ExportResult:
    """Write the export and verify that it loads."""
    progress.begin("export", 3, "parts")
    transformers_logging.disable_progress_bar()
    tokenizer = load_tokenizer(
        job.checkpoint.path, job.chat_template, job.checkpoint.allow_remote_code, job.add_bos
    )
    path = job.out_dir / "checkpoint"
    with new_directory(path) as aside:
        model = load_model(job.checkpoint, device=WITHOUT_MEMORY, dtype=DTYPES[job.precision])
        model.to(DTYPES[job.precision])  # type: ignore[arg-type]  # transformers wraps it and loses `self`
        with contextlib.closing(trained_weights(job, model, aside)) as weights:
            model.config.get_text_config().use_cache = model.config.use_cache = True
            make_settings_writable(model, len(tokenizer))
            apply_pad_token(model, tokenizer)
            progress.advance()
            model.save_pretrained(aside, state_dict={})  # all but the weights
            hashes = write_weights(model, weights, aside)
        tokenizer.save_pretrained(aside)
        if job.checkpoint.allow_remote_code:
            for source in Path(job.checkpoint.path).glob("*.py"):
                shutil.copy2(source, aside)
        progress.advance()
        _check_loads(aside, model, job.checkpoint.allow_remote_code)
        files = hash_files(aside)
        if changed := sorted(name for name in hashes if files.get(name) != hashes[name]):
            raise CheckpointError(
                f"The export changed {changed[0]} while writing it. Check the disk and run again."
            )
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
