"""Programs in a trainer's place that attack who started them by the only way back: their own folder and what they print.

Each is the body of a program that knows ``folder`` (its job's) and the modules json, os, sys and Path. ``Host`` is what they
are after: files of the person who runs the pipeline, outside of every step's folder.
"""

import json
from pathlib import Path

from dpo_core.contract.results import ERROR_FILE, RESULT_FILE

# All names of the orchestrator's own files, of this version and the one before, and those that a step leaves for it to read.
NAMES = (
    ".lock",
    "log.txt",
    "log.1.txt",
    "log.earlier.txt",
    ".log-position.json",
    "log-position.json",
    ".claim",
    ERROR_FILE,
    RESULT_FILE,
    "environment.json",
    "job.json",
    "accelerate.json",
)
SET_TRAPS = """
    import shutil
    print("a line of the step's", flush=True)
    for name in {names!r}:
        place = folder / name
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)
        {trap}
    sys.exit(3)
"""
TRAPS = {
    "symbolic links": "place.symlink_to(Path({host!r}, 'folder' if name == '.claim' else 'file'))",
    "links to a folder": "place.symlink_to({folder!r})",
    "links in a circle": "place.symlink_to(place)",
    "pipes": "os.mkfifo(place)",
    "folders": "(place / 'sub').mkdir(parents=True)",
    "links into the process table": "place.symlink_to('/proc/self/environ')",
    "a link to a terminal": "place.symlink_to('/dev/ptmx')",
}
HARD_LINK = "os.link(Path({host!r}, 'file'), place)"  # a container's folder is a mount of its own, so there it is refused


class Host:
    """What must stay as it is: a private file, a lock of the person's own, and a folder with both."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "folder").mkdir(parents=True)
        for name in ("file", "folder/.lock", "folder/file"):
            (root / name).write_text("a person's own")
            (root / name).chmod(0o600)
        self.before = self._state()

    def _state(self) -> dict[str, tuple]:
        abouts = {str(path): path.lstat() for path in (self.root, *self.root.rglob("*"))}
        return {
            name: (
                about.st_mode,
                about.st_uid,
                about.st_gid,
                about.st_size,
                about.st_mtime_ns,
                Path(name).is_dir() or Path(name).read_text(),
            )
            for name, about in abouts.items()
        }

    @property
    def is_untouched(self) -> bool:
        return self._state() == self.before

    def attack(self, trap: str) -> str:
        """The program that puts this trap in the place of every file."""
        filled = trap.format(host=str(self.root), folder=str(self.root / "folder"))
        return SET_TRAPS.format(names=NAMES, trap=filled)


def results_to_refuse(
    fingerprint: str, folder: Path, host: Path, good_sha256: str
) -> dict[str, tuple[str, str]]:
    """What is wrong -> (code that leaves such a result, what the refusal says). A good result has a file ``weights``."""

    def left(path: Path | str, files: dict[str, str], before: str = "") -> str:
        result = {"job_fingerprint": fingerprint, "path": str(path), "files": files}
        return f"{before}\n    (folder / 'result.json').write_text({json.dumps(result)!r})"

    made = "(folder / 'weights').write_text('weights')"
    inside = "(folder / 'made').mkdir(exist_ok=True); (folder / 'made' / 'weights').write_text('weights')"
    good = {"weights": good_sha256}
    return {
        "another folder": (left(host, {}), "is not in"),
        "another folder and its hashes": (left(host, good), "is not in"),
        "a folder above": (left(folder.parent, good, made), "is not in"),
        "a way out": (left(f"{folder}/made/../../..", good, inside), "is not in"),
        "a relative path": (left("made", good, inside), "is not in"),
        "a link": (left(folder / "out", good, f"(folder / 'out').symlink_to({str(host)!r})"), "is not in"),
        "no path": (left("/\0", good), "which is no path"),
        "no name of a file": (left(folder, {"weights\0": good_sha256}, made), "which is no name"),
        "no hashes": (left(folder, {}, made), "No hash of"),
        "a wrong hash": (left(folder, {"weights": "0" * 64}, made), "is damaged"),
        "a file outside": (left(folder, {f"../../../{host.name}/file": good_sha256}), "link|outside of"),
        "a file of the root": (left(folder, {"/etc/hostname": good_sha256}), "link|outside of|neither"),
        "a link as its file": (
            left(folder, good, f"(folder / 'weights').symlink_to({str(host / 'file')!r})"),
            "reached by a link",
        ),
        "a link beside its files": (
            left(
                folder / "made",
                good,
                inside
                + f"""
    (folder / 'made' / 'tokenizer.json').symlink_to({str(host / "file")!r})""",
            ),
            "neither a file nor a folder",
        ),
        "a pipe beside its files": (
            left(folder / "made", good, inside + "; os.mkfifo(folder / 'made' / 'config.json')"),
            "neither a file nor a folder",
        ),
        "a thousand nested lists": ("(folder / 'result.json').write_text('[' * 100_000)", "cannot be read"),
        "a thousand nested objects": (
            """(folder / 'result.json').write_text('{"path":' * 100_000)""",
            "cannot be read",
        ),
        "a terabyte": (
            "os.truncate(os.open(folder / 'result.json', os.O_CREAT | os.O_WRONLY), 1 << 40)",
            "longer than",
        ),
        "no JSON, but a secret of the step's": (
            "(folder / 'result.json').write_text('x' * 5000)",
            "cannot be read",
        ),
    }
