"""A whole tiny stage on disk, made by the real steps: rows -> mixture -> reference -> jobs that train and evaluate."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpo_core.__main__ import run_step
from dpo_core.contract.config import OptimConfig, TrainConfig
from dpo_core.contract.data_jobs import MixJob
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.job import Job, Result
from dpo_core.contract.jobs import BatchPlan, EvaluateJob, ReferenceJob, ReferenceResult, TrainJob
from dpo_core.contract.loss_config import Loss, LossConfig
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import CheckpointRef, DatasetRef, HeldOutSets, ResolvedSource
from dpo_core.contract.results import read_result
from dpo_core.contract.store import fingerprint, sha256_file
from tests.tiny_models import make_model

WORDS = (
    "the",
    "sea",
    "sky",
    "capital",
    "of",
    "France",
    "is",
    "Paris",
    "write",
    "a",
    "short",
    "list",
    "about",
    "three",
)


def make_rows(count: int, seed: int = 0) -> list[dict]:
    """Preference rows with explicit prompts; lengths differ widely, an answer passes with five words."""
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(low, high)))

    return [
        {
            "prompt": [{"role": "user", "content": f"{number} {words(2, 30)}"}],
            "chosen": [{"role": "assistant", "content": words(1, 12) + " yes."}],
            "rejected": [{"role": "assistant", "content": words(1, 20) + " no."}],
            "constraints": [{"name": "max_words", "limit": 5}],
        }
        for number in range(count)
    ]


def write_inputs(folder: Path) -> Path:
    """A 2-layer model in ``sft/`` and 60 pairs in ``pairs.jsonl``. -> ``folder``"""
    make_model(folder / "sft")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(60)))
    return folder


def tiny_values(inputs: Path, store: Path, **sections: dict) -> dict:
    """The settings of a run of 25 steps over ``write_inputs``, as a recipe or form gives them; keywords replace settings
    section by section."""
    values: dict = {
        "name": "tiny",
        "checkpoint": {"source": str(inputs / "sft")},
        "data": {
            "sources": [{"source": str(inputs / "pairs.jsonl")}],
            "held_out": "10",
            "max_length_tokens": 256,
            "num_workers": 1,
        },
        "optim": {"learning_rate": 1e-3},
        "train": {"global_batch_pairs": 2},
        "evaluation": {"num_prompts": 3, "max_new_tokens": 8},
        "compute": {"threads_per_process": 1},
        "store": {"root": str(store)},
    }
    return values | {name: {**values.get(name, {}), **section} for name, section in sections.items()}


def checkpoint_ref(folder: Path) -> CheckpointRef:
    """A pinned reference to a model folder, as fetching it would give."""
    return CheckpointRef(
        path=folder,
        source=folder.name,
        fingerprint=sha256_file(folder / "model.safetensors"),
        tokenizer_fingerprint=sha256_file(folder / "tokenizer.json"),
    )


def run_here(job: Job) -> Result:
    """Run a step in this process, quietly, as the program would; returns what it left on the disk."""
    job.write()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        run_step(job, Progress(job.step, sink=lambda event: None))
    finally:
        signal.signal(signal.SIGTERM, handler)  # the trainer listens for it
    return read_result(job)


def mix(
    rows: list[dict], checkpoint: CheckpointRef, folder: Path, held_out: str, seed: int = 8
) -> DatasetRef:
    """Rows -> tokenised mixture below ``folder``, through the real step."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ResolvedSource(label="rows", path=file, content=fingerprint(rows))
    return run_here(
        MixJob(
            sources=(source,),
            tokenizer_path=checkpoint.path,
            held_out=held_out,
            tokenizer_fingerprint=checkpoint.tokenizer_fingerprint,
            num_workers=1,
            seed=seed,
            cache_dir=folder / "cache",
        ).at(folder / "mix")
    ).data


def make_sets(sizes: dict[str, int], checkpoint: CheckpointRef, folder: Path) -> HeldOutSets:
    """Named sets of so many rows each, none of which is one of ``make_rows(..., seed=0)``, with reference values."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for number, (name, size) in enumerate(sizes.items()):
        rows, file = make_rows(size, seed=100 + number), folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append(ResolvedSource(label=name, path=file, content=fingerprint(rows)))
    job = MixJob(
        sources=tuple(sources),
        tokenizer_path=checkpoint.path,
        tokenizer_fingerprint=checkpoint.tokenizer_fingerprint,
        num_workers=1,
        set_names=tuple(sizes),
        cache_dir=folder / "cache",
    )
    data = run_here(job.at(folder / "mix")).data
    reference = run_here(reference_job(folder / "reference", data, checkpoint)).reference
    return HeldOutSets(data=data, reference=reference)


@dataclass(frozen=True)
class TinyStage:
    """What the steps of one run share."""

    root: Path
    checkpoint: CheckpointRef
    data: DatasetRef
    reference: ReferenceResult

    @classmethod
    def make(cls, root: Path, num_rows: int = 40, held_out: str = "6", **model: int) -> "TinyStage":
        """A random 2-layer model, ``num_rows`` rows, ``held_out`` of them kept apart, reference values of all."""
        checkpoint = checkpoint_ref(make_model(root / "model", **model))
        data = mix(make_rows(num_rows), checkpoint, root / "data", held_out)
        job = reference_job(root / "reference", data, checkpoint)
        return cls(root, checkpoint, data, run_here(job))

    def train_job(
        self,
        out_dir: Path,
        loss: str | Loss = "dpo",
        per_device: int = 2,
        processes: int = 1,
        learning_rate: float = 1e-3,
        **train: object,
    ) -> TrainJob:
        """A run over global batches of 4 pairs; keywords go to ``TrainConfig`` or, where it has none, to the job."""
        loss = LossConfig(name=loss, beta=0.5) if isinstance(loss, str) else loss
        of_job = {name: train.pop(name) for name in list(train) if name in TrainJob.model_fields}
        pairs = train.pop("global_pairs", 4)
        batch = BatchPlan(
            global_pairs=pairs,
            per_device_pairs=per_device,
            num_processes=processes,
            accumulation=max(1, pairs // (per_device * processes)),
        )
        reference = {"reference": self.reference.reference, "reference_checkpoint": self.checkpoint}
        return TrainJob(
            **(
                {
                    "data": self.data,
                    "checkpoint": self.checkpoint,
                    "batch": batch,
                    "loss": loss,
                    "optim": OptimConfig(learning_rate=learning_rate),
                    "train": TrainConfig(global_batch_pairs=pairs, **train),
                }
                | (reference if loss.needs_reference else {})
                | of_job
            )
        ).at(out_dir)

    def evaluate_job(self, out_dir: Path, after: CheckpointRef, **evaluation: int) -> EvaluateJob:
        """``after`` against the stage's own checkpoint, with the dpo loss."""
        return EvaluateJob(
            data=self.data,
            reference=self.reference.reference,
            reference_checkpoint=self.checkpoint,
            before=self.checkpoint,
            after=after,
            loss=LossConfig(name="dpo", beta=0.5),
            evaluation=EvaluationConfig(**evaluation),
        ).at(out_dir)


def reference_job(
    out_dir: Path, data: DatasetRef, checkpoint: CheckpointRef, **fields: object
) -> ReferenceJob:
    """Reference values of a mixture; the cache lies beside ``out_dir`` unless given."""
    return ReferenceJob(
        **{
            "data": data,
            "checkpoint": checkpoint,
            "cache_dir": out_dir.parent / "reference-cache",
            "tokens_per_batch": 256,
            "rows_per_shard": 16,
        }
        | fields
    ).at(out_dir)
