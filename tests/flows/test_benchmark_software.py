"""What benchmarks and trackers need is looked for where steps run, before anything is fetched."""

import sys
from pathlib import Path

import pytest

from dpo_core.contract.benchmarks import LM_EVAL_VERSION
from dpo_core.contract.errors import ConfigError
from flows.before_start import check_installed_trackers
from flows.benchmark_software import check_benchmarks
from flows.settings.stage_config import StageConfig
from flows.step_software import missing_in


def config(python: Path, back_end: str, **more: object) -> StageConfig:
    """Of a run whose steps run in ``python``."""
    return StageConfig.model_validate(
        {
            "name": "tiny",
            "checkpoint": {"source": "sft"},
            "data": {"sources": [{"source": "pairs.jsonl"}]},
            "benchmarks": {"tasks": ["ifeval"], "back_end": back_end},
            "compute": {"python": str(python)},
            **more,
        }
    )


def interpreter(folder: Path, missing: str) -> Path:
    """One that answers as a Python with lm-evaluation-harness and without the modules ``missing`` would."""
    path = folder / "python"
    path.write_text(
        f'#!/bin/sh\ncase "$2" in *find_spec*) echo {missing};; *) echo {LM_EVAL_VERSION};; esac\n'
    )
    path.chmod(0o755)
    return path


def test_a_back_end_that_is_not_there_is_refused(tmp_path):
    python = interpreter(tmp_path, missing="vllm")
    check_benchmarks(config(python, "hf"))
    with pytest.raises(
        ConfigError, match=r"back_end is vllm, and .*/python, which steps run in, has no vLLM"
    ):
        check_benchmarks(config(python, "vllm"))
    check_benchmarks(config(interpreter(tmp_path, missing=""), "vllm"))


def test_trackers_are_looked_for_where_the_training_runs(tmp_path):
    """They may be installed in the steps' own interpreter alone, or here alone."""
    tracked = {"tracking": {"trackers": ["tensorboard", "swanlab"]}}
    with pytest.raises(ConfigError, match=r"names swanlab, not installed .* `pip install swanlab`"):
        check_installed_trackers(config(tmp_path, "hf", **tracked, compute={}))
    with pytest.raises(ConfigError, match=r"pip install 'pairline\[trackers\]' swanlab"):
        check_installed_trackers(config(interpreter(tmp_path, "tensorboard swanlab"), "hf", **tracked))
    check_installed_trackers(config(interpreter(tmp_path, ""), "hf", **tracked))


def test_an_interpreter_is_asked_for_its_modules(tmp_path):
    """A real one, and what is none."""
    assert missing_in(sys.executable, ["json", "no_such_module", "torch"]) == ["no_such_module"]
    assert missing_in(sys.executable, []) == []
    with pytest.raises(ConfigError, match="is no Python that could be asked"):
        missing_in("/bin/false", ["json"])


def test_no_image_of_ours_holds_vllm(tmp_path):
    asked = {"compute": {"launcher": "docker"}, "image": {"variant": "cpu-benchmarks"}}
    check_benchmarks(config(tmp_path, "hf", **asked))
    with pytest.raises(ConfigError, match="vllm, which no image that Pairline builds holds"):
        check_benchmarks(config(tmp_path, "vllm", **asked))
