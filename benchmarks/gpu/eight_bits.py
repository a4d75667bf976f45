"""Settings that need bitsandbytes, as the program runs them: each killed after a checkpoint and resumed, QLoRA exported."""

import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

from benchmarks.gpu.whole import killed_and_resumed, prepare, run_once, start, train_job
from benchmarks.gpu.workload import Bench, Figure
from dpo_core.contract.config import AdapterConfig, OptimConfig
from dpo_core.contract.jobs import ExportJob, ReferenceJob, TrainJob
from dpo_core.contract.results import read_result

QLORA = AdapterConfig(kind="qlora")


def eight_bits(bench: Bench) -> list[Figure]:
    """QLoRA with its export, and AdamW with moments in 8 bits."""
    if bench.device.type == "cpu" or find_spec("bitsandbytes") is None:
        return [Figure("QLoRA and 8-bit AdamW", "not run: they need a card and bitsandbytes")]
    work = prepare(bench, bench.small)
    in_four_bits = ReferenceJob(
        data=work.data,
        checkpoint=work.checkpoint,
        base_weights="nf4",
        precision="bf16",
        tokens_per_batch=16_384,
        cache_dir=bench.folder / "references",
    )
    values = run_once(in_four_bits.at(bench.folder / "reference-nf4"))
    moments = OptimConfig(learning_rate=1e-5, optimizer="adamw_8bit")
    adapted = {"adapter": QLORA, "reference": values.reference}
    jobs = {
        "QLoRA": train_job(bench, work, "qlora").model_copy(update=adapted),
        "8-bit AdamW": train_job(bench, work, "adamw-8bit").model_copy(update={"optim": moments}),
    }
    with ThreadPoolExecutor() as at_once:
        resumed = at_once.map(lambda job: killed_and_resumed(job, start(job)), jobs.values())
        figures = [
            Figure(f"{name}: {figure.name}", figure.value) for name, figure in zip(jobs, resumed, strict=True)
        ]
    return [*figures, *_exported(bench, jobs["QLoRA"])]


def _exported(bench: Bench, job: TrainJob) -> list[Figure]:
    trained = read_result(job)
    if trained is None:
        return []
    export = ExportJob(
        weights_path=trained.weights_path,
        weights_fingerprint=trained.weights_fingerprint,
        checkpoint=job.checkpoint,
        adapter=QLORA,
    )
    started = time.perf_counter()
    run_once(export.at(bench.folder / "qlora-export"))
    return [Figure("QLoRA: export", time.perf_counter() - started, "s")]
