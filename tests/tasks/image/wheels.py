"""Wheels and sources made by hand: small, and real enough for pip."""

import io
import tarfile
import zipfile
from pathlib import Path


def make_wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any", content: str = "") -> Path:
    """A wheel with one module."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    path = folder / f"{module}-{version}-{tag}.whl"
    files = {
        f"{module}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for file_name, text in files.items():
            wheel.writestr(
                zipfile.ZipInfo(file_name), text
            )  # without the time of day: the same wheel has the same hash
        record = "".join(f"{file_name},,\n" for file_name in (*files, f"{info}/RECORD"))
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD"), record)
    return path


def make_source(folder: Path, name: str, version: str) -> Path:
    """A package as source, with a build of its own that needs nothing; the wheel's bits are other ones each time."""
    path = folder / f"{name}-{version}.tar.gz"
    backend = f"""
import time, zipfile
from pathlib import Path
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = "{name}-{version}-py3-none-any.whl"
    info = "{name}-{version}.dist-info"
    with zipfile.ZipFile(Path(wheel_directory, name), "w") as wheel:
        wheel.writestr("{name}.py", f"BUILT = {{time.time_ns()}}\\n")
        wheel.writestr(f"{{info}}/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        about = "Wheel-Version: 1.0\\nGenerator: hand\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(f"{{info}}/WHEEL", about)
        wheel.writestr(f"{{info}}/RECORD", "")
    return name
"""
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": backend,
    }
    with tarfile.open(path, "w:gz") as source:
        for file_name, text in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{file_name}")
            member.size = len(text.encode())
            source.addfile(member, io.BytesIO(text.encode()))
    return path
