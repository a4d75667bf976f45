"""Building on the real engine, with packages so small that it takes seconds: what is built when, and what fails how."""

import json
import mmap
import os
import tempfile
import time

import pytest

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.store import sha256_file
from tasks.image.trainer_image import CODE_LABEL, DEPENDENCIES_LABEL
from tasks.image.wheelhouse import SUMS_FILE
from tests.containers.conftest import image_made_of
from tests.containers.small_checkout import REPOSITORY
from tests.tasks.image.checkout import commit, write
from tests.tasks.image.wheels import make_wheel

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("base_image")]
FAILING = "RUN echo one; echo two >&2; exit 3\n"


def steps(said: list[str]) -> str:
    """Which images were built."""
    stages = {"dependencies": "FROM ${BASE_IMAGE} AS packages", "code": "FROM ${DEPENDENCIES} AS trainer"}
    return " ".join(name for name, line in stages.items() if any(line in one for one in said))


def test_each_change_builds_what_it_must_and_no_more(build, shared_engine, tmp_path):
    checkout = tmp_path / "checkout"
    first, said = build()
    assert steps(said) == "dependencies code"
    assert "alpha loads" in said
    again, said = build()
    assert (again, steps(said)) == (first, "")
    write(checkout, **{"flows/new.py": "# the orchestrator is not in the image\n"})
    elsewhere = commit(checkout)
    same, said = build()
    assert (same, steps(said)) == (first.model_copy(update={"commit": elsewhere}), "")

    write(checkout, **{"dpo_core/new.py": "NEW = 1\n"})
    changed_commit = commit(checkout)
    clock = time.monotonic()
    changed, said = build()
    seconds = time.monotonic() - clock
    assert steps(said) == "code"
    assert seconds < 60, "a code change takes seconds"
    assert changed.dependency_key == first.dependency_key
    assert changed.image_id != first.image_id
    layers = [
        shared_engine.images.get(image.image_id).attrs["RootFS"]["Layers"] for image in (first, changed)
    ]
    assert layers[0][:-2] == layers[1][:-2]
    labels = shared_engine.images.get(changed.image_id).labels
    assert labels["org.opencontainers.image.revision"] == changed_commit
    assert labels["org.opencontainers.image.version"]
    assert (labels[DEPENDENCIES_LABEL], labels["io.pairline.context-sha256"]) == (
        changed.dependency_key,
        changed.context_sha256,
    )
    assert (
        shared_engine.containers.run(
            changed.reference,
            ["python", "-c", "from dpo_core.new import NEW; print(NEW)"],
            remove=True,
            read_only=True,
            network_mode="none",
        )
        == b"1\n"
    )


def test_a_dirty_tree_is_refused_or_marked(build, shared_engine, tmp_path):
    write(tmp_path / "checkout", **{"dpo_core/new.py": "NEW = 2\n"})
    with pytest.raises(ConfigError, match=r"dpo_core/new\.py in"):
        build()
    image, _ = build(dirty_tree="tag")
    assert image.dirty
    built = shared_engine.images.get(image.image_id)
    assert built.labels["io.pairline.dirty"] == "true"
    assert built.labels["org.opencontainers.image.revision"] == f"{image.commit}-dirty"
    assert all(tag.endswith("-dirty") for tag in built.tags)


def test_a_failing_step_is_one_error_and_leaves_no_container(build, shared_engine, tmp_path):
    dockerfile = tmp_path / "checkout/images/trainer/Dockerfile"
    dockerfile.write_text(dockerfile.read_text() + FAILING)
    commit(tmp_path / "checkout")
    before = {container.id for container in shared_engine.containers.list(all=True, ignore_removed=True)}
    with pytest.raises(ConfigError) as caught:
        build()
    text = str(caught.value)
    assert f"RUN echo one; echo two >&2; exit 3 failed: The command '/bin/sh -c {FAILING[4:-1]}'" in text
    tail = text.rpartition("returned a non-zero code: 3\nIts last lines:\n")[2].splitlines()
    assert sorted(tail) == ["  | one", "  | two"]  # two streams, which the engine joins in either order
    ours = [
        container
        for container in shared_engine.containers.list(all=True, ignore_removed=True)
        if container.id not in before
    ]
    assert not [container for container in ours if "exit 3" in str(container.attrs["Config"]["Cmd"])]


def test_a_wheel_that_is_not_the_hashed_one_is_not_installed(build, tmp_path):
    wheels = tmp_path / "wheels"
    (wheels / SUMS_FILE).write_text(
        "".join(f"{sha256_file(path)}  {path.name}\n" for path in wheels.glob("*.whl"))
    )
    make_wheel(wheels, "alpha", "1.0", content="print('exchanged')\n")
    with pytest.raises(ConfigError, match=r"(?s)RUN .*DO NOT MATCH THE HASHES.*alpha"):
        build()
    installer = next(wheels.glob("pip-*.whl"))
    installer.write_bytes(installer.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match=r"(?s)RUN .*pip-.*: FAILED"):
        build()


def test_nothing_of_the_build_or_the_host_stays(build, shared_engine, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://ada:planted-secret@index.invalid/simple")
    proxies = {"proxies": {"default": {"httpProxy": "http://proxy-of-this-host:1"}}}
    write(tmp_path, **{"docker/config.json": json.dumps(proxies)})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    image, _ = build()
    config = shared_engine.images.get(image.image_id).attrs["Config"]
    told = str(shared_engine.api.history(image.image_id)) + str(config)
    words = ("planted-secret", "index.invalid", "proxy-of-this-host", str(tmp_path))
    assert not [word for word in words if word in told]
    with tempfile.TemporaryFile() as layers:
        for chunk in shared_engine.images.get(image.image_id).save():
            layers.write(chunk)
        with mmap.mmap(
            layers.fileno(), 0, access=mmap.ACCESS_READ
        ) as content:  # an uncompressed archive of archives
            assert not [word for word in words if content.find(word.encode()) >= 0]
            assert content.find(b"The program: ``accelerate launch -m dpo_core") >= 0
    assert config["User"] == "10001:10001"
    look = "import os; print(os.path.exists('/wheels'), os.path.exists('/opt/pairline/bin/pip'))"
    assert (
        shared_engine.containers.run(image.image_id, ["python", "-c", look], remove=True, network_mode="none")
        == b"False False\n"
    )
    left = shared_engine.images.list(
        filters={"label": f"io.pairline.packages-of={image.dependency_key}", "dangling": True}
    )
    assert left == []


def test_what_cannot_be_built_from_is_refused_with_the_way_out(build, tmp_path):
    with pytest.raises(ConfigError, match=r"no image no-such-base:1 \(image\.base_image\).*make base-image"):
        build(base_image="no-such-base:1")
    with pytest.raises(ConfigError, match=r"image\.use names sha256:0+, which this engine does not have"):
        build(use="sha256:" + "0" * 64)
    os.remove(next((tmp_path / "wheels").glob("alpha-*")))
    with pytest.raises(ConfigError, match=r"lacks 1 of \d+ packages.*alpha==1\.0"):
        build()


def test_the_code_key_finds_an_image_whatever_it_is_called(build, shared_engine):
    image, _ = build()
    built = shared_engine.images.get(image.image_id)
    assert built.labels[CODE_LABEL]
    built.tag(REPOSITORY, "another-name")
    for tag in built.tags:
        shared_engine.images.remove(tag)
    assert build()[1] == [f"Nothing to build: {image.image_id[:19]} holds this code and these dependencies"]


def test_an_image_that_somebody_made_of_ours_is_not_taken_for_it(build, shared_engine):
    """It inherits the labels: a layer more, or a variable more and nothing else."""
    image, _ = build()
    for changes, files in (("ENV A=1", {}), ("ENV A=2", {"more": b"with a layer of its own"})):
        child = image_made_of(shared_engine, image.image_id, files, changes)
        assert child.labels[CODE_LABEL] == shared_engine.images.get(image.image_id).labels[CODE_LABEL]
        assert build()[0].image_id == image.image_id
