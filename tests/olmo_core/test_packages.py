"""The lock file of OLMo-core over the trainer's: an image of both is complete, its packages fit, and are what runs here."""

import subprocess
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dpo_core.contract.errors import ConfigError
from tasks.image.context import read_sources
from tasks.image.requirements import trainer_pins
from tasks.image.trainer_image import CHECKOUT
from tests.tiny_stage import reference_job, run_here

OURS = "dpo_core.model.olmo_core"  # what our modules that import it are called, at the least


def test_the_packages_of_an_image_with_olmo_core_fit_each_other():
    pins = trainer_pins(read_sources(CHECKOUT, dirty_tree="tag").files, "cpu-olmo")
    versions = {name: next(iter(pin.specifier)).version for name, pin in pins.items()}
    wrong = []
    for name, version in versions.items():
        try:
            package = distribution(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        if name != "pip" and package.version.partition("+")[0] != version:
            wrong.append(f"{name} is locked as {version} and installed as {package.version}")
        for need in map(Requirement, package.requires or ()):
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            other = versions.get(canonicalize_name(need.name))
            if other is None or not need.specifier.contains(other, prereleases=True):
                wrong.append(f"{name} needs {need}, and has {other}")
    assert not wrong
    assert {"ai2-olmo-core", "torch", "transformers"} < set(pins)


class Absent(MetaPathFinder):
    """Finds no OLMo-core, and remembers who asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname.partition(".")[0] == "olmo_core":
            self.asked.append(fullname)
            raise ModuleNotFoundError(f"No module named {fullname!r}")


@pytest.mark.integration
def test_it_is_imported_only_where_it_was_chosen(stage, tmp_path, monkeypatch):
    """Steps on transformers do not ask for it, not even where it is installed."""
    for name in [name for name in sys.modules if name.startswith(("olmo_core", OURS))]:
        monkeypatch.delitem(sys.modules, name)
    absent = Absent()
    monkeypatch.setattr(sys, "meta_path", [absent, *sys.meta_path])
    job = reference_job(tmp_path / "reference", stage.data, stage.checkpoint)
    assert run_here(job).rows_computed == 40
    run_here(stage.train_job(tmp_path / "train", max_steps=1))
    run_here(stage.evaluate_job(tmp_path / "evaluation", stage.checkpoint, num_prompts=1, max_new_tokens=2))
    assert absent.asked == []
    assert not [name for name in sys.modules if name.startswith(("olmo_core", OURS))]
    other = {"implementation": "olmo_core", "cache_dir": tmp_path / "other cache"}
    with pytest.raises(ConfigError, match="cannot be imported where this step runs"):
        run_here(job.model_copy(update=other).at(tmp_path / "other"))
    assert absent.asked


@pytest.mark.integration
def test_torchao_which_is_imported_with_transformers_prints_nothing():
    program = "import dpo_core.library_noise as noise; noise.silence_libraries(); import torchao.float8"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout + ended.stderr == ""
