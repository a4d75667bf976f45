"""The lock file of OLMo-core over the trainer's: an image of both is complete, its packages fit, and are what runs here."""

from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tasks.image.context import read_sources
from tasks.image.requirements import trainer_pins
from tasks.image.trainer_image import CHECKOUT


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
