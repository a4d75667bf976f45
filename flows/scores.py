"""A run's benchmarks: the SFT checkpoint's scores, the trained one's, and both beside each other in the run's folder."""

from dpo_core.contract.benchmark_job import BenchmarkResult
from dpo_core.contract.benchmarks import BENCHMARKS_FILE, LM_EVAL_VERSION, Benchmarks, compared
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.store import write_json
from flows.settings.stage_config import StageConfig
from tasks.benchmark import benchmark
from tasks.checkpoint.chosen_template import ChosenTemplate, chosen_template
from tasks.launch.run_job import step_folder
from tasks.launch.workplace import Workplace
from tasks.run.folder import RunFolder
from tasks.show.artifacts import show_benchmarks


def score_start(
    config: StageConfig, checkpoint: CheckpointRef, folder: RunFolder, place: Workplace
) -> BenchmarkResult:
    """Return the SFT checkpoint's scores, with the template that was chosen for it."""
    with folder.task("benchmark of SFT"):
        result = benchmark(config.benchmarks, checkpoint, chosen_template(config.checkpoint), place)
        folder.output("benchmark_sft", step_folder(place.store, "benchmark", result.job_fingerprint))
    return result


def score(
    config: StageConfig, checkpoint: CheckpointRef, folder: RunFolder, place: Workplace
) -> BenchmarkResult:
    """Return the trained checkpoint's scores; a chosen template is in its files."""
    with folder.task("benchmark"):
        result = benchmark(config.benchmarks, checkpoint, ChosenTemplate(), place)
        folder.result("benchmark", result)
    return result


def compare(
    config: StageConfig, start: BenchmarkResult, end: BenchmarkResult, folder: RunFolder
) -> Benchmarks:
    """Return both beside each other, recorded and shown."""
    benchmarks = Benchmarks(
        lm_eval=LM_EVAL_VERSION + (" on vLLM" if config.benchmarks.back_end == "vllm" else ""),
        **config.benchmarks.model_dump(
            include={"limit", "num_fewshot", "chat_template", "max_length_tokens"}
        ),
        scores=compared(start.scores, end.scores),
    )
    record(benchmarks, folder)
    show_benchmarks(benchmarks, config.name)
    return benchmarks


def record(benchmarks: Benchmarks, folder: RunFolder) -> None:
    """Write them into a run's folder."""
    write_json(folder.folder / BENCHMARKS_FILE, benchmarks)
    folder.output("benchmarks", folder.folder / BENCHMARKS_FILE)
