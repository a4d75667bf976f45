"""What a step's program gets of the environment: what it is known to need, by name. A list of secrets would never end."""

import os
import re
from pathlib import Path

from tasks.launch.compute_config import SECRET
from tasks.launch.launcher import CommandSpec

# The system's, the interpreter's, and the settings of the libraries that a step is made of.
NEEDED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TERM|XDG_CACHE_HOME|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV"
    r"|CONDA_PREFIX|CC|CXX|MAX_JOBS|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    r"|(PYTHON|MALLOC_|OMP_|GOMP_|KMP_|MKL_|OPENBLAS_|NUMEXPR_|CUDA_|NVIDIA_|ROCR_|HIP_|NCCL_|GLOO_|UCX_|FI_"
    r"|TORCH|PYTORCH_|TRITON_|DS_|DEEPSPEED_|ACCELERATE_|HF_|TRANSFORMERS_|TOKENIZERS_|SAFETENSORS_|WANDB_|TENSORBOARD_)\w*"
)
# Of a step that has a network. A proxy's address may carry a password; so be it, as there is no other way to tell it.
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def inherited(needs_network: bool) -> dict[str, str]:
    """Return this process's variables that a step gets, too. What else it needs stands in ``compute.env``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if NEEDED.fullmatch(name) and not SECRET.search(name)
    }
    return kept | {name: os.environ[name] for name in PROXIES if needs_network and name in os.environ}


# What is a machine's own, or its scheduler's to set: a node has these by itself.
OF_THIS_MACHINE = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|TERM|XDG_CACHE_HOME|LD_LIBRARY_PATH|LD_PRELOAD|CUDA_VISIBLE_DEVICES|NVIDIA_\w+"
    r"|ROCR_VISIBLE_DEVICES|HIP_VISIBLE_DEVICES|CC|CXX|HF_TOKEN_PATH"
)
PACKAGES_FOLDER = Path(__file__).resolve().parents[2]  # where dpo_core lies, installed or not


def for_other_machines(command: CommandSpec) -> dict[str, str]:
    """Return the environment that a step's command gets on a machine that shares this one's file system. Without a
    proxy, whose address may carry a password: others can read what a scheduler is given."""
    kept = {
        name: value
        for name, value in inherited(needs_network=False).items()
        if not OF_THIS_MACHINE.fullmatch(name)
    }
    path = os.pathsep.join(filter(None, [str(PACKAGES_FOLDER), kept.get("PYTHONPATH", "")]))
    offline = (
        {} if command.needs_network else {"HF_HUB_OFFLINE": "1"}
    )  # an answer at once where a library would ask
    return kept | offline | {"PYTHONPATH": path} | command.env
