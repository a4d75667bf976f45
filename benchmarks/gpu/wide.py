"""Eight layers of 8B width run as the program is run, by the settings that large models are trained with."""

import json
import statistics
from importlib.util import find_spec

from benchmarks.gpu.whole import ended, prepare, reference_pass, start, steps_of, train_job
from benchmarks.gpu.workload import Bench, Figure
from dpo_core.contract.config import AdapterConfig
from dpo_core.contract.exchange_memory import exchange_parts
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.model_shape import ModelShape
from dpo_core.contract.olmo_core import Implementation
from dpo_core.contract.results import read_result
from dpo_core.contract.step_memory import StepMemory, arithmetic_of

STATE_BYTES = 16  # a trained parameter's weight, gradient and two moments in fp32
BUDGET_GIB = 12.0
PLANNED = "most memory, of what the plan says"
RUNS: dict[str, dict] = {
    "fsdp2": {},
    "fsdp2, norms and MLPs compiled": {"compile_regions": True},
    f"fsdp2, compiled, {BUDGET_GIB:g} GiB of products kept": {
        "compile_regions": True,
        "activation_budget_gib": BUDGET_GIB,
    },
    "OLMo-core, fsdp2, compiled": {"compile_regions": True, "implementation": "olmo_core"},
}


def wide(bench: Bench) -> list[Figure]:
    """Reference pass and training, a run after the other: each takes most of the card."""
    work = prepare(bench, bench.wide)
    shape = ModelShape.of(json.loads((work.checkpoint.path / "config.json").read_text()))
    assert shape is not None  # a Llama
    figures = []
    for name, settings in RUNS.items():
        implementation: Implementation = settings.get("implementation", "transformers")
        if implementation == "olmo_core" and find_spec("olmo_core") is None:
            figures.append(Figure(name, "not run: it needs olmo_core"))
            continue
        reference = reference_pass(bench, work, "bf16", implementation)
        speed = Figure(f"{implementation}: reference pass", reference.pairs_per_second, "pairs/s")
        figures += [speed] if speed.name not in {figure.name for figure in figures} else []
        job = train_job(bench, work, f"wide-{len(figures)}", "fsdp2", implementation=implementation)
        train = job.train.model_copy(
            update={
                **settings,
                "gradient_checkpointing": True,
                "checkpoint_every": 1000,
                "tokens_per_forward": "auto",
            }
        )
        job = job.model_copy(update={"train": train})
        try:
            ended(job, start(job))
        except RuntimeError as error:  # the next may run all the same
            figures.append(Figure(name, f"failed: {str(error)[-900:]}"))
            continue
        told = _told(job, shape)
        if bench.device.type == "cpu":  # where memory is the whole process's
            del told[PLANNED]
        figures += [Figure(f"{name}: {about}", *value) for about, value in told.items()]
    return figures


def _told(job: TrainJob, shape: ModelShape) -> dict[str, tuple]:
    result, steps = read_result(job), steps_of(job)
    assert result is not None  # it has ended
    settled = steps[2:] or steps  # what is compiled is compiled

    def median(metric: str) -> float:
        return statistics.median(step.get(metric, 0.0) for step in settled)

    tokens = round(result.checks["fit_tokens"])
    memory = StepMemory(
        shape,
        arithmetic_of(AdapterConfig(), job.train.precision, job.sharding.kind),
        job.train.gradient_checkpointing,
        budget=round(job.train.activation_budget_gib * 2**30),
    )
    exchanged = exchange_parts("fsdp2", shape, shape.num_parameters, shape.num_parameters, True, "bf16")
    expected = STATE_BYTES * shape.num_parameters + sum(exchanged.values()) + memory.beside_state(tokens)
    peak = max(result.checks["fit_peak_gib"], *(step["memory/peak_gib"] for step in steps))
    return {
        f"a step of {job.batch.global_pairs} pairs": (median("step_seconds"), "s"),
        "tokens of both sides a second": (median("tokens_per_second"), ""),
        "MFU": (median("mfu"), ""),
        "tokens of the largest forward": (float(tokens), ""),
        "most memory": (peak, "GiB"),
        PLANNED: (peak * 2**30 / expected, "", 1.15),
        "checks before the first step": (
            sum(value for check, value in result.checks.items() if check.endswith("_seconds")),
            "s",
        ),
    }
