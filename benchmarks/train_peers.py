"""Two ways to train on the same pairs, which ``benchmarks.train`` compares. Each runs in processes of its own.

    pairline  our steps as the flow starts them: ``python -m dpo_core reference`` and ``... train`` on job files
    trl       TRL's ``DPOTrainer``, reference log-probabilities computed beforehand, on the same rows in the same order

Same weights, token ids, dtype, AdamW (fused), learning rate and clipping; dpo (TRL: sigmoid) with beta 0.1. Neither
recomputes activations. TRL gets every pair of a step in one forward, as its users would; ours cuts by its token budget.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process_tree import run_measured
from dpo_core.contract.config import OptimConfig, Precision, TrainConfig
from dpo_core.contract.job import Job
from dpo_core.contract.jobs import ReferenceJob, ReferenceResult, TrainJob, TrainResult
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.refs import CheckpointRef, DatasetRef
from dpo_core.contract.results import read_result
from tasks.launch.compute import solve_batch

ROOT = Path(__file__).resolve().parents[1]
BETA, LEARNING_RATE = 0.1, 5e-7
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True, slots=True)
class Work:
    """One measurement: model, mixture, the same rows as conversations, and how they are trained on."""

    checkpoint: CheckpointRef
    data: DatasetRef
    rows: Path  # .jsonl of {"prompt", "chosen", "rejected"} in the mixture's order
    precision: Precision
    pairs_per_step: int
    max_length_tokens: int
    max_steps: int | None


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of a peer gave."""

    reference_pairs_per_second: float
    step_seconds: list[float]
    losses: list[float]
    peak_rss_gb: float  # of training, 1e9 bytes
    checks_seconds: float = (
        0.0  # ours: layout comparison, cache verification, guard and probe, before the first step
    )


def _our_step(job: Job, threads: int) -> tuple[object, float]:
    """Run a step as the program; its result and peak resident memory in GB."""
    command = [sys.executable, "-m", "dpo_core", job.step, "--job", str(job.write())]
    usage = run_measured(command, ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}, ROOT)
    return read_result(job), usage.peak_rss_mb * 2**20 / 1e9


def run_pairline(work: Work, folder: Path, threads: int) -> Run:
    """Reference pass and training through the program."""
    job = ReferenceJob(
        data=work.data, checkpoint=work.checkpoint, precision=work.precision, cache_dir=folder / "cache"
    ).at(folder / "reference")
    reference, _ = _our_step(job, threads)
    assert isinstance(reference, ReferenceResult)
    pairs = work.pairs_per_step
    train = TrainConfig(global_batch_pairs=pairs, precision=work.precision, max_steps=work.max_steps)
    trained, peak = _our_step(
        TrainJob(
            data=work.data,
            checkpoint=work.checkpoint,
            reference=reference.reference,
            reference_checkpoint=work.checkpoint,
            loss=LossConfig(name="dpo", beta=BETA),
            optim=OptimConfig(learning_rate=LEARNING_RATE),
            train=train,
            batch=solve_batch(pairs, None, 1),
        ).at(folder / "train"),
        threads,
    )
    assert isinstance(trained, TrainResult)
    steps = [json.loads(line) for line in trained.metrics_path.read_text().splitlines()]
    checks = sum(seconds for name, seconds in trained.checks.items() if name.endswith("_seconds"))
    return Run(
        reference.pairs_per_second,
        [step["step_seconds"] for step in steps],
        [step["loss"] for step in steps],
        peak,
        checks,
    )


def run_trl(work: Work, folder: Path, threads: int) -> Run:
    """TRL's trainer in a child process."""
    folder.mkdir(parents=True, exist_ok=True)
    values = json.dumps(
        {
            "model": str(work.checkpoint.path),
            "rows": str(work.rows),
            "bf16": work.precision == "bf16",
            "pairs": work.pairs_per_step,
            "max_length": work.max_length_tokens,
            "max_steps": work.max_steps or -1,
            "folder": str(folder),
        }
    )
    usage = run_measured(
        [sys.executable, "-m", "benchmarks.train_peers", values],
        ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)},
        ROOT,
    )
    return Run(**json.loads(usage.output.splitlines()[-1]), peak_rss_gb=usage.peak_rss_mb * 2**20 / 1e9)


def _trl_here(
    model: str, rows: str, bf16: bool, pairs: int, max_length: int, max_steps: int, folder: str
) -> dict:
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        """Seconds from one step's end to the next one's."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_begin(self, *_: object, **__: object) -> None:
            self.last = time.monotonic()

        def on_step_end(self, *_: object, **__: object) -> None:
            now = time.monotonic()
            self.seconds.append(now - self.last)
            self.last = now

    class TimedTrainer(DPOTrainer):
        """Notes how long the reference pass takes."""

        def _precompute_ref_logps(self, dataset, *arguments, **named):
            started = time.monotonic()
            computed = super()._precompute_ref_logps(dataset, *arguments, **named)
            self.reference_rate = len(dataset) / (time.monotonic() - started)
            return computed

    clock = Clock()
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[clock],
        train_dataset=load_dataset("json", data_files=rows, split="train", cache_dir=f"{folder}/cache"),
        args=DPOConfig(
            output_dir=folder,
            loss_type=["sigmoid"],
            beta=BETA,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            weight_decay=0.0,
            max_grad_norm=1.0,
            num_train_epochs=1,
            max_steps=max_steps,
            per_device_train_batch_size=pairs,
            max_length=max_length,
            train_sampling_strategy="sequential",
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "reference_pairs_per_second": trainer.reference_rate,
        "step_seconds": clock.seconds,
        "losses": losses,
    }


if __name__ == "__main__":
    print(json.dumps(_trl_here(**json.loads(sys.argv[1]))))
