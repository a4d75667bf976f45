"""Checkpoints from a directory, a package and a hub become pinned snapshots, named by content."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError, ConfigError, DiskFull, RemoteError
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.store import hash_files, sha256_file
from tasks.checkpoint import files as checkpoint_files
from tasks.checkpoint.source import locate, snapshot
from tests.hub_server import Hub
from tests.tiny_models import make_model


def fetch(source: object, store: Path, **fields: object) -> CheckpointRef:
    config = CheckpointConfig(source=str(source), **fields)
    return snapshot(locate(config, store), config, store)


def test_a_snapshot_is_named_by_content_and_made_once(checkpoint: Path, tmp_path: Path) -> None:
    first = fetch(checkpoint, tmp_path / "store")
    assert first.path.parent == tmp_path / "store" / "checkpoints"
    assert hash_files(first.path) == first.files
    inode = (first.path / "model.safetensors").stat().st_ino
    moved = shutil.move(checkpoint, tmp_path / "elsewhere")
    again = fetch(moved, tmp_path / "store")
    assert again == first.model_copy(update={"source": str(moved)})
    assert (again.path / "model.safetensors").stat().st_ino == inode
    (Path(moved) / "config.json").unlink()  # the snapshot does not depend on its source
    assert hash_files(first.path) == first.files


def test_other_weights_and_other_templates_change_their_own_fingerprint(
    checkpoint: Path, tmp_path: Path
) -> None:
    first = fetch(checkpoint, tmp_path / "store")
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    template = fetch(checkpoint, tmp_path / "store")
    assert template.fingerprint == first.fingerprint
    assert template.tokenizer_fingerprint != first.tokenizer_fingerprint
    assert template.path != first.path
    other = fetch(make_model(tmp_path / "seed1", seed=1), tmp_path / "store")
    assert other.fingerprint != first.fingerprint
    assert other.tokenizer_fingerprint == first.tokenizer_fingerprint


def test_a_damaged_snapshot_is_made_again(checkpoint: Path, tmp_path: Path) -> None:
    first = fetch(checkpoint, tmp_path / "store")
    (first.path / "model.safetensors").write_bytes(b"damaged")
    assert fetch(checkpoint, tmp_path / "store") == first
    assert hash_files(first.path) == first.files


def test_overwriting_the_source_leaves_the_snapshot_alone(checkpoint: Path, tmp_path: Path) -> None:
    first = fetch(checkpoint, tmp_path / "store")
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.write(b"\xff" * 8)
    assert hash_files(first.path) == first.files


def test_a_package_is_found_without_running_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = shutil.copytree(checkpoint, tmp_path / "site" / "tiny_sft_package")
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = fetch("package:tiny_sft_package", tmp_path / "store")
    assert found.fingerprint == fetch(checkpoint, tmp_path / "store").fingerprint
    assert "tiny_sft_package" not in sys.modules
    assert "__init__.py" not in found.files


def test_a_package_below_another_is_found_without_running_either(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = shutil.copytree(checkpoint, tmp_path / "site" / "tiny_outer_package" / "inner").parent
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert (
        fetch("package:tiny_outer_package.inner", tmp_path / "store").files
        == fetch(checkpoint, tmp_path / "store").files
    )
    for name in (
        "tiny_outer_package.none",
        "tiny_outer_package...inner",
        "tiny_outer_package/inner",
        "../site",
        "",
    ):
        with pytest.raises(CheckpointError, match="no installed Python package"):
            fetch(f"package:{name}", tmp_path / "store")


NOT_OURS = "what the owner of this machine wrote"


@pytest.mark.parametrize(
    "name",
    [
        "additional_chat_templates/rag.jinja",
        "chat_template.jinja",
        "special_tokens_map.json",
        "generation_config.json",
        "modeling_x.py",
    ],
)
@pytest.mark.parametrize("through", ["link", "link to a link", "folder"])
def test_a_link_out_of_the_checkpoint_publishes_nothing(
    checkpoint: Path, tmp_path: Path, name: str, through: str
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    target = own / Path(name).name
    target.write_text(NOT_OURS)
    link = checkpoint / name
    link.unlink(missing_ok=True)
    if through == "folder" and "/" in name:
        link.parent.symlink_to(own)
    else:
        link.parent.mkdir(exist_ok=True)
        if through == "link to a link":
            (checkpoint / "README.md").symlink_to(target)
            target = checkpoint / "README.md"
        link.symlink_to(target)
    with pytest.raises(CheckpointError, match=rf"{name} is a link to {own}/.*, outside the checkpoint"):
        fetch(
            checkpoint,
            tmp_path / "store",
            allow_remote_code=("modeling_x.py",) if name == "modeling_x.py" else (),
        )
    assert not [
        path for path in (tmp_path / "store").rglob("*") if path.is_file() and NOT_OURS in path.read_text()
    ]


def test_code_that_is_allowed_by_its_content_is_that_content(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "modeling_x.py").write_text("X = 1\n")
    pin = f"modeling_x.py@sha256:{sha256_file(checkpoint / 'modeling_x.py')}"
    assert "modeling_x.py" in fetch(checkpoint, tmp_path / "store", allow_remote_code=(pin,)).files
    (checkpoint / "modeling_x.py").write_text("X = 2\n")
    with pytest.raises(CheckpointError, match=r"another modeling_x\.py than the one that"):
        fetch(checkpoint, tmp_path / "store", allow_remote_code=(pin,))


def test_a_link_put_in_place_while_files_are_copied_publishes_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").write_text(NOT_OURS)
    real_check = checkpoint_files.check_inside

    def swapped_after(folder: Path, names: list[str]) -> None:
        real_check(folder, names)
        (folder / "chat_template.jinja").unlink()
        (folder / "chat_template.jinja").symlink_to(tmp_path / "own")

    monkeypatch.setattr(checkpoint_files, "check_inside", swapped_after)
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        fetch(checkpoint, tmp_path / "store")


def test_what_is_no_regular_file_is_not_waited_for(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "generation_config.json").unlink()
    os.mkfifo(checkpoint / "generation_config.json")
    fetch(checkpoint, tmp_path / "store")  # a pipe is no file, so it is none of the checkpoint's
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        fetch(checkpoint, tmp_path / "store")
    (checkpoint / "config.json").unlink()


def cached(checkpoint: Path, cache: Path, shared: bool) -> Path:
    """The checkpoint as the Hub client's cache holds it: links to blobs, in newer versions to blobs of all repositories."""
    repository = cache / "models--org--sft"
    folder = repository / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in checkpoint.iterdir():
        digest = sha256_file(path)
        blob = repository / "blobs" / digest
        if shared:
            place = cache / "blobs" / digest[:2] / digest
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
            blob.symlink_to(Path("../../blobs") / digest[:2] / digest)
        else:
            shutil.copy(path, blob)
        (folder / path.name).symlink_to(Path("../../blobs") / digest)
    return folder


@pytest.mark.parametrize("shared", [False, True])
def test_links_of_the_hubs_cache_are_followed_and_no_others(
    checkpoint: Path, tmp_path: Path, shared: bool
) -> None:
    folder = cached(checkpoint, tmp_path / "cache", shared)
    assert fetch(folder, tmp_path / "store").files == fetch(checkpoint, tmp_path / "store").files
    (tmp_path / "cache" / "token").write_text(NOT_OURS)  # the client keeps one beside its cache
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to("../../../token")
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        fetch(folder, tmp_path / "store")


def test_links_within_a_checkpoint_are_its_own(checkpoint: Path, tmp_path: Path) -> None:
    before = fetch(checkpoint, tmp_path / "store").files
    (checkpoint / "template.txt").write_bytes((checkpoint / "chat_template.jinja").read_bytes())
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / "chat_template.jinja").symlink_to("template.txt")
    (tmp_path / "by-a-link").symlink_to(checkpoint)  # nor is the way to the folder of importance
    assert fetch(tmp_path / "by-a-link", tmp_path / "store").files == before


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        ("package:no_such_package_here", {}, "no installed Python package"),
        ("./no/such/folder", {}, "does not exist as a directory and is no Hub id"),
        ("{checkpoint}/config.json", {}, "is a file, expected a directory"),
        ("{checkpoint}", {"revision": "main"}, "revision main is for a Hub id"),
    ],
)
def test_sources_that_are_none(
    checkpoint: Path, tmp_path: Path, source: str, fields: dict, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        fetch(source.format(checkpoint=checkpoint), tmp_path / "store", **fields)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_branch_is_resolved_to_its_commit(checkpoint: Path, tmp_path: Path, hub: Hub) -> None:
    commit = hub.add_repo(
        "org/sft", contents(checkpoint) | {"training_args.bin": b"pickle", "notes.pdf": b"?"}
    )
    found = fetch("org/sft", tmp_path / "store", revision="main")
    local = fetch(checkpoint, tmp_path / "store")
    assert found.revision == commit
    assert (found.fingerprint, found.tokenizer_fingerprint, found.path) == (
        local.fingerprint,
        local.tokenizer_fingerprint,
        local.path,
    )
    assert not any("training_args.bin" in request for request in hub.requests)  # neither fetched nor kept
    newer = hub.add_repo("org/sft", contents(make_model(tmp_path / "seed1", seed=1)))
    moved = fetch("org/sft", tmp_path / "store", revision="main")
    assert moved.revision == newer
    assert moved.fingerprint != found.fingerprint
    assert fetch("org/sft", tmp_path / "store", revision=commit) == found


def test_a_hub_that_is_away_is_not_needed_twice(checkpoint: Path, tmp_path: Path, hub: Hub) -> None:
    hub.add_repo("org/sft", contents(checkpoint))
    found = fetch("org/sft", tmp_path / "store")
    hub.failures["/api/models/org/sft"] = [503] * 20
    assert fetch("org/sft", tmp_path / "store") == found
    with pytest.raises(RemoteError, match="503"):
        fetch("org/sft", tmp_path / "other-store")


def test_an_answer_without_a_commit_pins_nothing(checkpoint: Path, tmp_path: Path, hub: Hub) -> None:
    commit, hub.names_commits = hub.add_repo("org/sft", contents(checkpoint)), False
    with pytest.raises(RemoteError, match="names no commit of org/sft"):
        fetch("org/sft", tmp_path / "store")
    hub.names_commits = True
    assert fetch("org/sft", tmp_path / "store").revision == commit  # nothing was recorded in its place


def test_weights_are_not_downloaded_when_the_small_files_are_wrong(
    checkpoint: Path, tmp_path: Path, hub: Hub
) -> None:
    files = contents(checkpoint)
    del files["chat_template.jinja"]
    hub.add_repo("org/sft", files)
    with pytest.raises(CheckpointError, match="no chat template"):
        fetch("org/sft", tmp_path / "store")
    assert not any("model.safetensors" in request for request in hub.requests)


def test_no_more_is_downloaded_than_the_recipe_lets(checkpoint: Path, tmp_path: Path, hub: Hub) -> None:
    """An event names the checkpoint that a run of a recipe starts from."""
    commit = hub.add_repo("org/sft", contents(checkpoint) | {"notes.pdf": b"?"})
    hub.claims = {"model.safetensors": 1 << 49, "other.bin": 9 << 40}
    with pytest.raises(
        CheckpointError, match=rf"org/sft@{commit} has 524288.*raise checkpoint\.max_download_gib"
    ):
        locate(CheckpointConfig(source="org/sft"), tmp_path / "store")
    with pytest.raises(DiskFull, match="has 524288"):
        locate(CheckpointConfig(source="org/sft", max_download_gib=1e6), tmp_path / "store")
    assert not any("resolve" in request for request in hub.requests)
    hub.claims = {}
    locate(CheckpointConfig(source="org/sft"), tmp_path / "store")
    hub.claims = {"model.safetensors": 3 << 40}  # it is in the cache, so nothing is downloaded
    assert locate(CheckpointConfig(source="org/sft"), tmp_path / "store").revision == commit


def test_a_private_or_missing_repository_or_revision_says_so(
    checkpoint: Path, tmp_path: Path, hub: Hub
) -> None:
    hub.add_repo("org/private", contents(checkpoint), private=True)
    hub.add_repo("org/sft", contents(checkpoint))
    with pytest.raises(ConfigError, match=r"\(401\).*fetching org/private"):
        fetch("org/private", tmp_path / "store")
    with pytest.raises(ConfigError, match="revision does not exist"):
        fetch("org/sft", tmp_path / "store", revision="no-such-branch")
