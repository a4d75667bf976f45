"""Whether benchmarks can be run where steps run, looked at before anything is fetched or booked."""

from dpo_core.contract.benchmarks import LM_EVAL_VERSION
from dpo_core.contract.errors import ConfigError
from flows.settings.stage_config import StageConfig
from flows.step_software import StepPython, check_image_holds, how_to_get_it, missing_in, python_of_steps
from tasks.benchmark import pinned_folder
from tasks.image.image_ref import BENCHMARKS

VLLM = "vllm"


def check_benchmarks(config: StageConfig) -> None:
    """Raise ``ConfigError`` where tasks are named and lm-evaluation-harness, or a folder of tasks, is not there."""
    if not config.benchmarks.tasks:
        return
    for folder in config.benchmarks.task_folders:
        pinned_folder(folder)
    python = python_of_steps(config)
    if python is None:
        check_image_holds(config, "lm-evaluation-harness", BENCHMARKS, "benchmarks.tasks is set")
        if config.benchmarks.back_end == "vllm" and config.image.use is None:
            raise ConfigError(
                "benchmarks.back_end is vllm, which no image that Pairline builds holds.",
                "Set image.use to an image that has it and lm-evaluation-harness, or benchmarks.back_end to hf.",
            )
    elif not python.why_not:
        _check_python(config, python)


def _check_python(config: StageConfig, python: StepPython) -> None:
    lm_eval = f"lm-eval=={LM_EVAL_VERSION}"
    missing = missing_in(python.path, [lm_eval, VLLM] if config.benchmarks.back_end == "vllm" else [lm_eval])
    if lm_eval in missing:
        raise ConfigError(
            f"benchmarks.tasks is set, and {python.path}, which steps run in, has no lm-eval {LM_EVAL_VERSION} (found: "
            f"{missing[lm_eval]}).",
            how_to_get_it(config, python),
        )
    if missing:
        raise ConfigError(
            f"benchmarks.back_end is vllm, and {python.path}, which steps run in, has no vLLM.",
            f"Install it there, set {python.setting} to an interpreter that has it, or set benchmarks.back_end to hf.",
        )
