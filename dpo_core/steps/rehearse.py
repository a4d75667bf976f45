"""Step ``rehearse``: what an export writes, of the checkpoint that training would start from, without its weights.

An export happens after days of training, so everything that could refuse it is tried first: the names of the weights there
and back, the pad token, config, generation config, tokenizer and template as they would be written and read again. Weights
are places without memory (PyTorch's meta device); the file that stands for them is all hole. Their values are
read once, some at a time, to see that all are numbers.
"""

import json
import logging
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging as transformers_logging

from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.jobs import AnswerResult, RehearseJob, RehearseResult
from dpo_core.contract.progress import Progress
from dpo_core.contract.store import hash_files, new_directory
from dpo_core.data.render_limits import rendered_by_library
from dpo_core.data.tokenizer import load_tokenizer
from dpo_core.model.all_weights import NO_WEIGHTS, model_of_all_weights
from dpo_core.model.export_form import DTYPES, apply_pad_token, num_embedding_rows, tokens_without_row
from dpo_core.model.finite_weights import check_finite
from dpo_core.model.generate import end_token_ids
from dpo_core.model.generation_settings import check_ids, make_settings_writable
from dpo_core.model.load import WITHOUT_MEMORY, with_loading_info

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
NAMES_OF = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}


def run(job: RehearseJob, progress: Progress) -> RehearseResult:
    """Write ``checkpoint/`` without weights (see ``jobs.RehearseJob``). Raises ``CheckpointError`` for what would fail."""
    progress.begin("rehearse", 3, "parts")
    transformers_logging.disable_progress_bar()
    model = model_of_all_weights(
        job.checkpoint, DTYPES[job.precision]
    )  # first: a tokenizer reads config.json, too
    tokenizer = load_tokenizer(
        job.checkpoint.path, job.chat_template, job.checkpoint.allow_remote_code, job.add_bos
    )
    _check_renders(tokenizer, job)
    _check_template(tokenizer, num_embedding_rows(model), job)
    progress.advance()
    path = job.out_dir / "checkpoint"
    with new_directory(path) as aside:
        _write(model, tokenizer, aside, job)
        progress.advance()
        _check_names(model, aside, job)
        check_finite(job.checkpoint.path, job.checkpoint.source, NO_WEIGHTS)
        answer = _as_loaded(aside, model, job)
        files = hash_files(aside)
    progress.advance()
    return RehearseResult(job_fingerprint=job.fingerprint, path=path, files=files, loaded=answer)


def _check_renders(tokenizer: PreTrainedTokenizerBase, job: RehearseJob) -> None:
    """Raise ``CheckpointError`` if the template fails on a plain prompt, as the hand-off's check would ask it."""
    try:
        rendered_by_library(
            tokenizer, [{"role": "user", "content": job.probe_prompt}], add_generation_prompt=True
        )
    except CheckpointError:
        raise
    except Exception as error:  # whatever a template raises
        raise CheckpointError(
            f"The chat template of {job.checkpoint.source} fails on a plain prompt: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:600]}. Choose another one (checkpoint.chat_template)."
        ) from error


def _check_template(tokenizer: PreTrainedTokenizerBase, num_rows: int, job: RehearseJob) -> None:
    """Raise ``CheckpointError`` if the template writes a token that the embedding has no row for."""
    beyond = tokens_without_row(tokenizer, num_rows)
    if not beyond:
        return
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
    ids: set[int] = set()
    for messages, opens_answer in ((turns, False), (turns[:1], True)):
        try:
            text = rendered_by_library(tokenizer, messages, add_generation_prompt=opens_answer)
        except CheckpointError:
            raise
        except (
            Exception
        ):  # a template raises whatever it likes; what it does with rows is for the mixture to see
            continue
        ids.update(tokenizer.encode(text, add_special_tokens=False))
    if written := [token for token, number in beyond.items() if number in ids]:
        raise CheckpointError(
            f"The chat template of {job.checkpoint.source} writes {', '.join(written[:3])} (id {beyond[written[0]]}), "
            f"and the model's embedding has {num_rows} rows, so this token has none. The tokens were added without "
            "resizing: call model.resize_token_embeddings(len(tokenizer)) where they are added, train them, and save "
            "the checkpoint again; or choose another template (checkpoint.chat_template)."
        )


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, job: RehearseJob
) -> None:
    """What ``export`` writes, but for the weights."""
    source = job.checkpoint.source
    check_ids(model, source)
    try:
        model.config.get_text_config().use_cache = model.config.use_cache = True
        make_settings_writable(model, len(tokenizer))
        apply_pad_token(model, tokenizer)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        assert model.generation_config is not None
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{source} can be read, but not written again, so no result of a training on it could be saved: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:600]}. Repair its config.json, "
            "generation_config.json or tokenizer_config.json."
        ) from error


def _check_names(model: PreTrainedModel, folder: Path, job: RehearseJob) -> None:
    """Raise ``CheckpointError`` unless the weights, under the names they would be saved by, are found again."""
    try:
        saved = revert_weight_conversion(model, dict(model.state_dict()))
        with TemporaryDirectory(dir=folder.parent) as beside:
            for file in folder.iterdir():
                if file.is_file():
                    (Path(beside) / file.name).symlink_to(file.resolve())
            for code in job.checkpoint.path.glob("*.py") if job.checkpoint.allow_remote_code else ():
                (Path(beside) / code.name).symlink_to(code.resolve())
            write_hollow(saved, Path(beside) / WEIGHTS)
            again, info = with_loading_info(
                Path(beside),
                dtype=DTYPES[job.precision],
                device_map=WITHOUT_MEMORY,
                trust_remote_code=job.checkpoint.allow_remote_code,
                local_files_only=True,
            )
    except Exception as error:
        raise CheckpointError(
            f"The weights of {job.checkpoint.source} could not be saved and loaded again: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:600]}"
        ) from error
    problems = {
        kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")
    }
    problems["changed"] = sorted(set(model.state_dict()) ^ set(again.state_dict()))
    if found := "; ".join(f"{kind} {', '.join(names[:3])}" for kind, names in problems.items() if names):
        raise CheckpointError(
            f"The weights of {job.checkpoint.source} do not come back by the names they would be saved under: "
            f"{found}. This architecture cannot be exported; use a version of it that stock transformers knows."
        )


def write_hollow(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file of these names, types and shapes whose values are a hole: it takes a header of disk."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES_OF[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def _as_loaded(folder: Path, model: PreTrainedModel, job: RehearseJob) -> AnswerResult:
    """What the hand-off's rules ask of a load, but for answers."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=job.checkpoint.allow_remote_code, local_files_only=True
        )
        text = rendered_by_library(
            tokenizer, [{"role": "user", "content": job.probe_prompt}], add_generation_prompt=True
        )
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"The tokenizer of {job.checkpoint.source} does not load again as it would be saved, or its template "
            f"fails on a prompt: {type(error).__name__}: {' '.join(str(error).split())[:600]}"
        ) from error
    return AnswerResult(
        job_fingerprint=job.fingerprint,
        answers=(),
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        eos_token_ids=end_token_ids(model, tokenizer),
        vocab_size=num_embedding_rows(model),
        tokenizer_size=len(tokenizer),
        num_parameters=model.num_parameters(),
        prompts_ids=(tuple(tokenizer.encode(text, add_special_tokens=False)),),
    )
