"""The trainer image as a cluster's file: the exact command lines, and whole files alone. The programs are stand-ins."""

from pathlib import Path

import pytest

from dpo_core.contract.errors import ConfigError, DiskFull
from tasks.image.cluster_image import SIF, SQUASHFS, FileKind, write_cluster_image

IMAGE = "sha256:" + "a" * 64


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    """A program of this name, alone on the path but for a shell's own."""
    (folder / "bin").mkdir()
    program = folder / "bin" / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("kind", "name", "place", "argv"),
    [
        (SQUASHFS, "enroot", 3, "import --output ASIDE dockerd://" + IMAGE),
        (SIF, "apptainer", 2, "build ASIDE docker-daemon:" + IMAGE),
    ],
)
def test_the_file_is_written_aside_by_the_right_command(
    kind: FileKind, name: str, place: int, argv: str, tmp_path, monkeypatch
):
    stand_in(tmp_path, monkeypatch, name, f'echo "$@"; [ ! -e "${place}" ] && echo made >"${place}"')
    file, said = tmp_path / f"shared/trainer{kind.ending}", list[str]()
    for _ in range(2):  # the second one replaces the first one's
        assert write_cluster_image(kind, IMAGE, file, said.append) == file
    aside = tmp_path / f"shared/.trainer.aside{kind.ending}"
    assert said == [argv.replace("ASIDE", str(aside))] * 2
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    assert file.read_text() == "made\n"


@pytest.mark.parametrize(
    ("said", "kind"), [("FATAL: no such image", ConfigError), ("write: No space left on device", DiskFull)]
)
def test_a_program_that_fails_leaves_the_earlier_file(said: str, kind: type, tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "apptainer", f'echo half >"$2"; echo "{said}" >&2; exit 255')
    (tmp_path / "trainer.sif").write_text("earlier")
    with pytest.raises(kind, match=f"exit code 255.*\n.*{said}"):
        write_cluster_image(SIF, IMAGE, tmp_path / "trainer.sif", print)
    assert (tmp_path / "trainer.sif").read_text() == "earlier"
    assert not list(tmp_path.glob(".*"))


def test_a_program_that_is_not_there_and_a_wrong_name_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"There is no enroot on this machine.*Install Enroot"):
        write_cluster_image(SQUASHFS, IMAGE, tmp_path / "trainer.sqsh", print)
    with pytest.raises(ConfigError, match=r"does not end in \.sif.*Name it trainer\.sif"):
        write_cluster_image(SIF, IMAGE, tmp_path / "trainer.img", print)
