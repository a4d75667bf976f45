"""Parts on a whole model of SmolLM2-135M's shape, run as the program is run: reference pass, training by every back end,
a checkpoint, a kill and what comes after it, and TRL's DPOTrainer on the same pairs."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.gpu.workload import ANSWER, LONGEST, PROMPT, SPREAD, Bench, Figure, Training, free
from benchmarks.train_peers import ROOT, Work, run_trl
from dpo_core.__main__ import run_step
from dpo_core.contract.back_ends import ShardingKind
from dpo_core.contract.config import OptimConfig, Precision, TrainConfig
from dpo_core.contract.data_jobs import MixJob
from dpo_core.contract.job import Job, R
from dpo_core.contract.jobs import BatchPlan, ReferenceJob, ReferenceResult, Sharding, TrainJob
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.olmo_core import Implementation
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import CheckpointRef, ResolvedSource
from dpo_core.contract.results import read_error, read_result
from dpo_core.contract.store import hash_files, sha256_file
from dpo_core.data.mixing import shuffle_order
from dpo_core.engine.checkpoint import RunState
from dpo_core.engine.checkpoint_writer import save_checkpoint

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    f"{first}{second}{third}"
    for first in "bdfgklmnprst"
    for second in "aeiou"
    for third in ("", "n", "st", "rk")
]
PAIRS, STEPS, PAIRS_PER_STEP, SEED = 128, 8, 16, 8


def prepare(bench: Bench, shape: dict) -> Work:
    """Model, rows and mixture in the bench's folder, made once: by our own steps."""
    folder = bench.folder / f"of-{shape['hidden_size']}-{shape['tie_word_embeddings']}"
    pairs = 12 if bench.tiny else PAIRS
    checkpoint = _checkpoint(bench, shape, folder / "model")
    file, ordered = folder / "rows.jsonl", folder / "ordered.jsonl"
    if not file.exists():
        rows = _rows(pairs, bench.scale)
        ordered.write_text(
            "".join(json.dumps(rows[place]) + "\n" for place in shuffle_order(len(rows), SEED))
        )
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ResolvedSource(label="rows", path=file, content=sha256_file(file))
    mixture = run_once(
        MixJob(
            sources=(source,),
            tokenizer_path=checkpoint.path,
            tokenizer_fingerprint=checkpoint.tokenizer_fingerprint,
            held_out="0",
            max_length_tokens=LONGEST,
            seed=SEED,
            num_workers=1,
            cache_dir=folder / "cache",
        ).at(folder / "mix")
    )
    return Work(checkpoint, mixture.data, ordered, "bf16", 4 if bench.tiny else PAIRS_PER_STEP, LONGEST, None)


def run_once(job: Job[R]) -> R:
    """Run a step in this process, unless its result is there."""
    if read_result(job) is None:
        job.write()
        run_step(job, Progress(job.step, active=True, sink=lambda event: None))
    result = read_result(job)
    assert result is not None  # else the step has raised
    return result


def _rows(count: int, scale: int) -> list[dict]:
    """Rows whose words are about a token each."""
    rng = np.random.default_rng(0)

    def words(mean: int) -> str:
        return " ".join(
            rng.choice(WORDS, max(2, int(rng.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD)) // scale))
        )

    return [
        {
            "prompt": [{"role": "user", "content": words(PROMPT)}],
            "chosen": [{"role": "assistant", "content": words(ANSWER)}],
            "rejected": [{"role": "assistant", "content": words(ANSWER)}],
        }
        for _ in range(count)
    ]


def _checkpoint(bench: Bench, shape: dict, folder: Path) -> CheckpointRef:
    if not folder.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            [" ".join(WORDS)] * 4,
            trainers.BpeTrainer(
                vocab_size=shape["vocab_size"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
                special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            ),
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
        fast.chat_template = CHATML
        model = bench.model(shape)
        assert (fast.eos_token_id, fast.pad_token_id) == (
            model.config.eos_token_id,
            model.config.pad_token_id,
        )
        (model if shape == bench.small else model.bfloat16()).save_pretrained(folder)
        fast.save_pretrained(folder)
        del model
        free(bench.device)
    return CheckpointRef(
        path=folder,
        source="random",
        fingerprint=sha256_file(folder / "model.safetensors"),
        tokenizer_fingerprint=sha256_file(folder / "tokenizer.json"),
    )


def reference_pass(
    bench: Bench, work: Work, precision: Precision, implementation: Implementation = "transformers"
) -> ReferenceResult:
    """The reference's values, computed once."""
    job = ReferenceJob(
        data=work.data,
        checkpoint=work.checkpoint,
        precision=precision,
        implementation=implementation,
        tokens_per_batch=16_384,
        cache_dir=bench.folder / "references",
    )
    return run_once(
        job.at(bench.folder / f"reference-{work.checkpoint.fingerprint[:8]}-{precision}-{implementation}")
    )


def train_job(
    bench: Bench,
    work: Work,
    name: str,
    kind: ShardingKind = "none",
    precision: Precision = "bf16",
    implementation: Implementation = "transformers",
) -> TrainJob:
    """Some steps of dpo that write checkpoints."""
    pairs = work.pairs_per_step
    train = TrainConfig(
        global_batch_pairs=pairs,
        precision=precision,
        max_steps=3 if bench.tiny else STEPS,
        tokens_per_forward=16_384,
        checkpoint_every=2,
    )
    return TrainJob(
        data=work.data,
        checkpoint=work.checkpoint,
        reference=reference_pass(bench, work, precision, implementation).reference,
        reference_checkpoint=work.checkpoint,
        loss=LossConfig(name="dpo", beta=0.1),
        optim=OptimConfig(learning_rate=1e-5),
        train=train,
        batch=BatchPlan(global_pairs=pairs, per_device_pairs=pairs, num_processes=1, accumulation=1),
        sharding=Sharding(kind=kind),
    ).at(bench.folder / name)


def start(job: Job) -> subprocess.Popen:
    """Start a step as a process."""
    job.write()
    log = (job.out_dir / "log.txt").open("a")
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dpo_core", job.step, "--job", str(job.out_dir / "job.json")],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=log,
    )


def ended(job: Job, process: subprocess.Popen) -> object:
    """A step's result once its process is over. Raises ``RuntimeError`` with its error and the end of its log."""
    code = process.wait(timeout=240)
    if code:
        raise RuntimeError(
            f"{job.out_dir.name} ended with {code}: {read_error(job)}\n"
            f"{(job.out_dir / 'log.txt').read_text()[-1500:]}"
        )
    return read_result(job)


def steps_of(job: Job) -> list[dict]:
    """The metrics of its steps."""
    file = job.out_dir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _speed(job: Job) -> float:
    """Seconds of a step: the median of all but the first and those after a checkpoint."""
    return statistics.median(step["step_seconds"] for step in steps_of(job)[1:])


def training(bench: Bench) -> list[Figure]:
    """Ours and TRL's DPOTrainer, one after the other, on the same pairs in the same order."""
    work = prepare(bench, bench.small)
    figures, seconds = [], {}
    reference = reference_pass(bench, work, "bf16")
    figures.append(Figure("reference pass", reference.pairs_per_second, "pairs/s"))
    for precision in ("bf16", "bf16_pure"):
        job = train_job(bench, work, f"plain-{precision}", precision=precision)
        ended(job, start(job))
        seconds[precision] = _speed(job)
        figures += [
            Figure(f"{precision}: a step of {work.pairs_per_step} pairs", seconds[precision], "s"),
            Figure(
                f"{precision}: most memory", max(line["memory/peak_gib"] for line in steps_of(job)), "GiB"
            ),
            Figure(
                f"{precision}: checks before the first step",
                sum(value for name, value in read_result(job).checks.items() if name.endswith("_seconds")),
                "s",
            ),
        ]
    try:
        theirs = run_trl(work, bench.folder / "trl", os.cpu_count() or 1)
        their_seconds = statistics.median(theirs.step_seconds[1:])
        figures += [
            Figure("TRL: a step of the same pairs", their_seconds, "s"),
            Figure("TRL: reference pass", theirs.reference_pairs_per_second, "pairs/s"),
            Figure("times TRL's training speed", their_seconds / seconds["bf16"], "", 2.5, at_most=False),
        ]
    except Exception as error:  # what ours gave is worth showing alone
        figures.append(Figure("TRL", f"did not run: {str(error)[-900:]}"))
    return figures


def back_ends(bench: Bench) -> list[Figure]:
    """ZeRO-3 and FSDP2 as groups of one, and a run that is killed and resumed, all at once: only that they end right."""
    work = prepare(bench, bench.small)
    jobs = {
        name: train_job(bench, work, f"end-{name}", kind)
        for name, kind in (("plain", "none"), ("zero3", "zero3"), ("fsdp2", "fsdp2"), ("killed", "none"))
    }
    processes = {name: start(job) for name, job in jobs.items()}
    figures = [killed_and_resumed(jobs["killed"], processes.pop("killed"))]
    results = {}
    for name, process in processes.items():
        try:
            results[name] = ended(jobs[name], process)
            lines = steps_of(jobs[name])
            figures.append(Figure(f"{name}: loss of the last step", lines[-1]["loss"], ""))
            figures.append(
                Figure(f"{name}: most memory", max(line["memory/peak_gib"] for line in lines), "GiB")
            )
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            process.kill()
            figures.append(Figure(name, f"failed: {str(error)[-900:]}"))
    return figures


def killed_and_resumed(job: TrainJob, process: subprocess.Popen) -> Figure:
    """kill -9 once a checkpoint stands, then the same job again."""
    checkpoints = job.out_dir / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("step-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        result = ended(job, start(job))
        return Figure("killed and resumed from step", float(result.resumed_from_step or 0), "")
    except RuntimeError as error:
        return Figure("killed and resumed", f"failed: {str(error)[-900:]}")


def checkpoint(bench: Bench) -> list[Figure]:
    """Writing a checkpoint of weights and moments, hashing included, and hashing alone."""
    training = Training.start(bench, bench.small, "bf16", compare=False)
    started = time.perf_counter()
    folder = save_checkpoint(
        bench.folder / "checkpoints", training.engine, RunState(step=1, job_fingerprint="x"), 1
    )
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
    started = time.perf_counter()
    hash_files(folder)
    hashing = time.perf_counter() - started
    writing = sum(_seconds_of_writing(file, bench.folder / "copy") for file in folder.iterdir())
    return [
        Figure("checkpoint", size, "GB"),
        Figure("written and hashed", size / seconds, "GB/s"),
        Figure("written alone", size / writing, "GB/s", 2.0, at_most=False),
        Figure("hashed alone", size / hashing, "GB/s", 1.5, at_most=False),
    ]


def _seconds_of_writing(file: Path, copy: Path) -> float:
    content = file.read_bytes()
    started = time.perf_counter()
    with copy.open("wb") as out:
        out.write(content)
        os.fsync(out.fileno())
    return time.perf_counter() - started
