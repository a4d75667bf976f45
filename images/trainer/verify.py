"""Runs while the dependency image is built: the packages load, and they are those of the variant (first argument: cpu,
cuda, or one of them with -olmo, -benchmarks or both behind it); a compiler is there where it was asked for (second argument:
needed or none), and nowhere else."""

import importlib
import shutil
import sys
import sysconfig
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "peft",
    "datasets",
    "gguf",
    "safetensors",
    "pydantic",
)
COMPILERS = ("cc", "gcc", "g++", "clang", "nvcc")


def problems(variant: str, compiler: str) -> list[str]:
    """What is wrong, in sentences."""
    found = []
    kind, *extras = variant.split("-")
    packages = [*PACKAGES]
    packages += ["deepspeed.ops.comm.deepspeed_shm_comm_op"] if kind == "cpu" else []
    for extra in extras:
        packages += {
            "olmo": ["olmo_core.nn.transformer", "olmo_core.nn.hf", "torchao.float8"],
            "benchmarks": ["lm_eval"],
        }[extra]
    for package in packages:
        try:
            importlib.import_module(package)
        except (ImportError, OSError) as error:
            found.append(f"{package} does not load: {error}")
    torch = sys.modules.get("torch")
    if torch is not None and (torch.version.cuda is not None) != (kind == "cuda"):
        found.append(
            f"torch {torch.__version__} is not a build for {variant}; the wheelhouse holds another variant's."
        )
    return found + compiler_problems(compiler)


def compiler_problems(compiler: str) -> list[str]:
    """What is wrong with the base's compiler, which the PATH finds, or with Python's headers."""
    there = [name for name in COMPILERS if shutil.which(name)]
    if compiler == "none":
        return [
            f"{name} is on the PATH; take a base image without a compiler, or set image.compiler to true."
            for name in there
        ]
    missing = [] if {"gcc", "clang"} & {*there} else ["a C compiler (gcc or clang)"]
    missing += [] if Path(sysconfig.get_path("include"), "Python.h").is_file() else ["Python.h"]
    return [f"the base image lacks {name}, which image.compiler asks for." for name in missing]


if __name__ == "__main__":
    sys.exit("\n".join(problems(*sys.argv[1:])) or None)
