"""Lists what is installed where it runs: Debian and Python packages with versions and licences, as JSON on stdout.

The whole file is handed to the interpreter inside an image, so it uses the standard library alone.
"""

import importlib.metadata
import json
import re
import sys
from pathlib import Path

CLASSIFIER = "License :: "


def debian_packages(root: Path = Path("/")) -> list[dict[str, str]]:
    """Return installed packages by dpkg's own record; none where there is no dpkg."""
    status = root / "var/lib/dpkg/status"
    found = []
    for block in status.read_text(errors="replace").split("\n\n") if status.is_file() else ():
        fields = dict(re.findall(r"^([\w-]+): (.*)$", block, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            found.append(
                {
                    "kind": "deb",
                    "name": fields["Package"],
                    "version": fields["Version"],
                    "architecture": fields.get("Architecture", ""),
                    "licence": debian_licence(root / "usr/share/doc" / fields["Package"] / "copyright"),
                }
            )
    return found


def debian_licence(path: Path) -> str:
    """Return short names in a machine-readable copyright file, in prose the licences of Debian's own folder that it
    points at.
    """
    if not path.is_file():
        return ""
    text = path.read_text(errors="replace")
    names = re.findall(r"^License: *(\S.*)$", text, re.MULTILINE) or re.findall(
        r"/usr/share/common-licenses/([\w.-]*\w)", text
    )
    return " AND ".join(sorted({name.strip() for name in names}))


def python_packages(folders: list[str]) -> list[dict[str, str]]:
    """Return installed distributions in these folders."""
    found = []
    for package in importlib.metadata.distributions(path=folders):
        found.append(
            {
                "kind": "pypi",
                "name": package.metadata["Name"],
                "version": package.version,
                "licence": python_licence(package.metadata),
            }
        )
    return found


def python_licence(metadata: "importlib.metadata.PackageMetadata") -> str:
    """Return the expression (PEP 639), else the classifiers, else the first line of the free text."""
    if expression := _field(metadata, "License-Expression"):
        return expression
    named = [
        line.rsplit(" :: ", 1)[-1]
        for line in metadata.get_all("Classifier") or ()
        if line.startswith(CLASSIFIER)
    ]
    if named := [name for name in named if name != "OSI Approved"]:
        return " AND ".join(sorted(set(named)))
    lines = _field(metadata, "License").strip().splitlines()
    return lines[0][:100] if lines else ""


def _field(metadata: "importlib.metadata.PackageMetadata", name: str) -> str:
    return (metadata.get_all(name) or [""])[0]


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "python": sys.version.split()[0],
                "packages": debian_packages() + python_packages([path for path in sys.path if path]),
            }
        )
    )
