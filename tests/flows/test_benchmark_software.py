"""What benchmarks and trackers need is looked for where steps run, before anything is fetched."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from dpo_core.contract.benchmarks import LM_EVAL_VERSION
from dpo_core.contract.errors import ConfigError
from flows.before_start import check_installed_trackers
from flows.benchmark_software import VLLM, check_benchmarks
from flows.settings.stage_config import StageConfig
from flows.step_software import missing_in

LM_EVAL = f"lm-eval=={LM_EVAL_VERSION}"


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


def interpreter(folder: Path, *missing: str) -> Path:
    """One that answers as a Python with all that it is asked for but ``missing`` would, and counts how often it is
    started."""
    path = folder / "python"
    looked = [
        f'case " $* " in *" {name} "*) found="$found,\\"{name}\\": \\"none\\"";; esac' for name in missing
    ]
    script = ["#!/bin/sh", f'echo >> "{folder}/starts"', "shift 2", *looked, 'echo "{${found#,}}"']
    path.write_text("\n".join(script) + "\n")
    path.chmod(0o755)
    return path


def test_a_back_end_that_is_not_there_is_refused(tmp_path):
    python = interpreter(tmp_path, VLLM)
    check_benchmarks(config(python, "hf"))
    with pytest.raises(
        ConfigError, match=r"back_end is vllm, and .*/python, which steps run in, has no vLLM"
    ):
        check_benchmarks(config(python, "vllm"))
    check_benchmarks(config(interpreter(tmp_path), "vllm"))
    with pytest.raises(ConfigError, match=r"has no lm-eval .* \(found: none\)"):
        check_benchmarks(config(interpreter(tmp_path, LM_EVAL, VLLM), "vllm"))
    assert (tmp_path / "starts").read_text().count("\n") == 4, "once a look, however much is looked for"


def test_trackers_are_looked_for_where_the_training_runs(tmp_path):
    """They may be installed in the steps' own interpreter alone, or here alone."""
    tracked = {"tracking": {"trackers": ["tensorboard", "swanlab"]}}
    with pytest.raises(ConfigError, match=r"names swanlab, not installed .* `pip install swanlab`"):
        check_installed_trackers(config(tmp_path, "hf", **tracked, compute={}))
    with pytest.raises(ConfigError, match=r"pip install 'pairline\[trackers\]' swanlab"):
        check_installed_trackers(config(interpreter(tmp_path, "tensorboard", "swanlab"), "hf", **tracked))
    check_installed_trackers(config(interpreter(tmp_path), "hf", **tracked))


def test_an_interpreter_is_asked_for_its_modules(tmp_path):
    """A real one, whose start-up prints a line, and what is none."""
    talks = tmp_path / "talks"
    talks.write_text(f'#!/bin/sh\necho "a module is loaded"\nexec {sys.executable} "$@"\n')
    talks.chmod(0o755)
    here = f"pytest=={version('pytest')}"
    wanted = ["json", "no_such_module", "torch", here, "pytest==0.1", "no-such-package==1"]
    assert missing_in(str(talks), wanted) == {
        "no_such_module": "none",
        "pytest==0.1": version("pytest"),
        "no-such-package==1": "none",
    }
    for other in ("/bin/false", "/bin/true", "/bin/echo"):  # the last repeats what it is asked
        with pytest.raises(ConfigError, match=r"is no Python that could be asked.* Set compute\.python"):
            missing_in(other, ["json"])
    with pytest.raises(ConfigError, match=r"cannot be started.* Set compute\.python"):
        missing_in(str(tmp_path / "python"), ["json"])


def test_no_image_of_ours_holds_vllm(tmp_path):
    asked = {"compute": {"launcher": "docker"}, "image": {"variant": "cpu-benchmarks"}}
    check_benchmarks(config(tmp_path, "hf", **asked))
    with pytest.raises(ConfigError, match="vllm, which no image that Pairline builds holds"):
        check_benchmarks(config(tmp_path, "vllm", **asked))
