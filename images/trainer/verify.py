"""Runs while the dependency image is built: the packages load, and they are those of the variant (argument: cpu,
cuda, or one of them with -olmo or -benchmarks behind it)."""

import importlib
import shutil
import sys

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


def problems(variant: str) -> list[str]:
    """What is wrong, in sentences."""
    found = []
    kind, _, more = variant.partition("-")
    packages = [*PACKAGES]
    packages += ["deepspeed.ops.comm.deepspeed_shm_comm_op"] if kind == "cpu" else []
    packages += {"olmo": ["olmo_core.nn.transformer", "olmo_core.nn.hf"], "benchmarks": ["lm_eval"]}.get(
        more, []
    )
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
    found += [
        f"{name} is on the PATH; take a base image without a compiler."
        for name in COMPILERS
        if shutil.which(name)
    ]
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems(sys.argv[1])) or None)
