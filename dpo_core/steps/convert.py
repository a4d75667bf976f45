"""Step ``convert``: GGUF, or pickle weights allowed by name -> a folder with safetensors weights.

Dequantised weights are kept in float32, so the policy starts from exactly the numbers that the file stands for. The
same file gives the same bytes.
"""

import errno
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dpo_core.contract.data_jobs import ConvertJob, ConvertResult
from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.progress import Progress
from dpo_core.contract.store import hash_files, new_directory

SNAPSHOT = "snapshot"  # subfolder of the job's out_dir
PICKLE_INDEX, INDEX = "pytorch_model.bin.index.json", "model.safetensors.index.json"


def _without_quantization(quantized: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model made from the plain config.

    A model loaded from GGUF remembers its quantised origin and refuses to be saved, although its weights are plain
    tensors by then.
    """
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantized.state_dict(), strict=True, assign=True)
    plain.tie_weights()
    if quantized.generation_config is not None:
        plain.generation_config = quantized.generation_config
    return plain


def convert_gguf(source_dir: Path, gguf_file: str, target: Path) -> None:
    """Write config, float32 safetensors, generation config, tokenizer and chat template of a GGUF file to ``target``.

    Raises ``CheckpointError`` for a file that cannot be read or an architecture that transformers does not know.
    """
    path = source_dir / gguf_file
    try:
        tokenizer = AutoTokenizer.from_pretrained(source_dir, gguf_file=gguf_file)
        model = AutoModelForCausalLM.from_pretrained(source_dir, gguf_file=gguf_file, dtype=torch.float32)
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs the package `gguf` to be read: pip install gguf. ({error})"
        ) from error
    except (
        Exception
    ) as error:  # a cut or foreign file fails anywhere in the reader: IndexError, struct.error, ...
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a GGUF model that transformers "
            f"knows: {type(error).__name__}: {error}. Fetch the file again, or use a safetensors "
            "checkpoint."
        ) from error
    _without_quantization(model).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _safetensors_name(pickle_name: str) -> str:
    return pickle_name.replace("pytorch_model", "model", 1).removesuffix(".bin") + ".safetensors"


def convert_pickle(source_dir: Path, names: tuple[str, ...], target: Path, progress: Progress) -> None:
    """Write each pickle file's tensors as one safetensors file; an index if there are several. One file is in memory.

    ``torch.load(weights_only=True)`` builds tensors and nothing else. Raises ``CheckpointError`` for anything else.
    """
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for name in names:
        path = source_dir / name
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # of a cut or foreign archive, nearly anything
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise CheckpointError(
                f"{path} cannot be loaded as plain weights: {' '.join(str(error).split())[:300]}. It is cut off, or it "
                "holds more than tensors; use a safetensors checkpoint."
            ) from error
        if not isinstance(loaded, dict) or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
        ):
            raise CheckpointError(
                f"{path} holds no state dict (names -> tensors). Save model.state_dict() instead."
            )
        if odd := [key for key, value in loaded.items() if not _is_plain(value)]:
            raise CheckpointError(
                f"{path} holds {odd[0]} as {_kind(loaded[odd[0]])}, and not as plain numbers. Use the checkpoint that it "
                "was made from."
            )
        # safetensors knows no shared memory: tied weights become two equal tensors, which load the same.
        tensors = {key: value.clone(memory_format=torch.contiguous_format) for key, value in loaded.items()}
        save_file(tensors, target / _safetensors_name(name), metadata={"format": "pt"})
        weight_map |= {key: _safetensors_name(name) for key in sorted(tensors)}
        total_bytes += sum(value.nbytes for value in tensors.values())
        progress.advance()
    if len(names) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (target / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is a dense tensor of numbers that files of weights hold."""
    is_dense = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"
    return is_dense and not tensor.is_complex()


def _kind(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} ({tensor.layout}, on {tensor.device.type})".replace("torch.", "")


def _copy_small_files(source_dir: Path, target: Path) -> None:
    """Everything beside the pickle weights that describes the model: configs, tokenizer, template, code."""
    for path in sorted(source_dir.iterdir()):
        if (
            path.is_file()
            and path.suffix in (".json", ".jinja", ".model", ".txt", ".py")
            and path.name != PICKLE_INDEX
        ):
            shutil.copyfile(path, target / path.name)


def run(job: ConvertJob, progress: Progress) -> ConvertResult:
    """Convert into ``out_dir/snapshot`` (see ``jobs.ConvertJob``). Raises ``CheckpointError``."""
    progress.begin("convert", total=max(len(job.pickle_files), 1), unit="files")
    path = job.out_dir / SNAPSHOT
    with new_directory(path) as aside:
        if job.gguf_file:
            convert_gguf(job.source_dir, job.gguf_file, aside)
            progress.advance()
        else:
            convert_pickle(job.source_dir, job.pickle_files, aside, progress)
            _copy_small_files(job.source_dir, aside)
    return ConvertResult(job_fingerprint=job.fingerprint, path=path, files=hash_files(path))
