"""Uploading to a directory and to a hub: once, whole, verified, and without the token in sight."""

import logging
import traceback
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from peft import PeftConfig
from prefect.logging import disable_run_logger
from transformers import AutoModelForCausalLM

from dpo_core.contract.config import AdapterConfig, CheckpointConfig
from dpo_core.contract.destination_config import UploadConfig
from dpo_core.contract.errors import ConfigError, PairlineError, RemoteError, StoreError
from dpo_core.contract.store import hash_files
from dpo_core.model.adapter import load_policy, save_adapter
from tasks.checkpoint.source import locate, snapshot
from tasks.publish.directory import content_revision
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tasks.upload_checkpoint import upload_checkpoint
from tests.hub_server import Hub
from tests.tasks.published import card_of, export_of
from tests.tiny_stage import checkpoint_ref

TOKEN = "hf_writetoken"


def upload(folder: Path, store: Path, name: str = "tiny", **fields: object) -> UploadedCheckpoint:
    with disable_run_logger():
        return upload_checkpoint.fn(export_of(folder), UploadConfig(**fields), store, card_of(folder, name))


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> str:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN


# ------------------------------------------------------------------------------------------------------- a directory


def test_the_default_is_a_directory_in_the_store(checkpoint: Path, tmp_path: Path) -> None:
    first = upload(checkpoint, tmp_path / "store")
    assert first.directory == tmp_path / "store" / "published" / f"tiny-{first.revision[:12]}"
    assert (
        hash_files(first.directory)
        == first.files
        == export_of(checkpoint).files | {"README.md": first.files["README.md"]}
    )
    assert first.revision == content_revision(first.files)
    assert not first.reused
    assert "org/sft" in (first.directory / "README.md").read_text()
    inode = (first.directory / "model.safetensors").stat().st_ino
    assert upload(checkpoint, tmp_path / "store") == first.model_copy(update={"reused": True})
    assert (first.directory / "model.safetensors").stat().st_ino == inode


def test_a_damaged_copy_in_the_store_is_made_again(checkpoint: Path, tmp_path: Path) -> None:
    first = upload(checkpoint, tmp_path / "store")
    (first.directory / "model.safetensors").write_bytes(b"damaged")
    assert not upload(checkpoint, tmp_path / "store").reused
    assert hash_files(first.directory) == first.files


def test_a_named_directory_is_never_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"upload\.directory .*mine exists and holds something other"):
        upload(checkpoint, tmp_path / "store", directory=target)
    assert (target / "thesis.tex").read_text() == "years of work"
    (target / "thesis.tex").unlink()
    assert upload(checkpoint, tmp_path / "store", directory=target).directory == target
    assert upload(checkpoint, tmp_path / "store", directory=target).reused


def test_a_damaged_export_is_not_published(checkpoint: Path, tmp_path: Path) -> None:
    export = export_of(checkpoint)
    (checkpoint / "config.json").write_text("{}")
    with disable_run_logger(), pytest.raises(StoreError, match=r"config\.json is damaged"):
        upload_checkpoint.fn(export, UploadConfig(), tmp_path / "store", card_of(checkpoint))
    assert not (tmp_path / "store" / "published").exists()


# ------------------------------------------------------------------------------------------------------------- a hub


def test_one_private_commit_holds_every_file(checkpoint: Path, tmp_path: Path, hub: Hub, token: str) -> None:
    result = upload(checkpoint, tmp_path / "store", repo_id="org/dpo", tag="v1")
    repo = hub.repos["model", "org/dpo"]
    assert repo.private
    assert hub.commits_made == 1
    assert repo.tags == {"v1": result.revision}
    assert result.uri == f"hf://org/dpo@{result.revision}"
    assert (
        repo.commits[result.revision]["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    )
    folder = Path(HfApi(token=token).snapshot_download("org/dpo", revision="v1", local_dir=tmp_path / "down"))
    assert {name: sha for name, sha in hash_files(folder).items()} == result.files


def test_an_adapter_beside_the_weights_is_published_and_found_by_peft(
    checkpoint: Path, tmp_path: Path, hub: Hub, token: str
) -> None:
    """In a folder of its own: the checkpoint is loaded as before, and serves as the next run's start."""
    adapter = load_policy(checkpoint_ref(checkpoint), AdapterConfig(kind="lora", rank=2), seed=0)
    save_adapter(adapter, checkpoint / "adapter", checkpoint_ref(checkpoint))
    result = upload(checkpoint, tmp_path / "store", repo_id="org/dpo")
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < result.files.keys()
    at = {"revision": result.revision, "token": token}
    assert PeftConfig.from_pretrained("org/dpo", subfolder="adapter", **at).r == 2
    plain = AutoModelForCausalLM.from_pretrained("org/dpo", **at)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    again = CheckpointConfig(source=str(upload(checkpoint, tmp_path / "store").directory))
    assert not any("adapter" in name for name in snapshot(locate(again, tmp_path), again, tmp_path).files)


def test_a_second_upload_sends_nothing(checkpoint: Path, tmp_path: Path, hub: Hub, token: str) -> None:
    first = upload(checkpoint, tmp_path / "store", repo_id="org/dpo", tag="v1")
    hub.requests.clear()
    again = upload(checkpoint, tmp_path / "store", repo_id="org/dpo", tag="v1")
    assert again == first.model_copy(update={"reused": True})
    assert {request.split()[0] for request in hub.requests} == {"GET"}


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_the_owners_files(
    checkpoint: Path, tmp_path: Path, hub: Hub, token: str
) -> None:
    hub.add_repo(
        "org/dpo",
        {"LICENSE": b"Apache-2.0", "model-00001-of-00002.safetensors": b"old", "config.json": b"{}"},
        private=True,
    )
    result = upload(checkpoint, tmp_path / "store", repo_id="org/dpo")
    assert hub.commits_made == 1
    assert set(hub.repos["model", "org/dpo"].commits[result.revision]) == {*result.files, "LICENSE"}


def test_a_tag_is_never_moved(checkpoint: Path, tmp_path: Path, hub: Hub, token: str) -> None:
    first = upload(checkpoint, tmp_path / "store", repo_id="org/dpo", tag="v1")
    (checkpoint / "generation_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"upload\.tag v1 of org/dpo already names commit"):
        upload(checkpoint, tmp_path / "store", repo_id="org/dpo", tag="v1")
    assert hub.commits_made == 1
    assert hub.repos["model", "org/dpo"].tags == {"v1": first.revision}


def test_a_public_repository_is_refused_unless_asked_for(
    checkpoint: Path, tmp_path: Path, hub: Hub, token: str
) -> None:
    hub.add_repo("org/open", {"README.md": b"hello"})
    with pytest.raises(ConfigError, match=r"org/open is public, but upload\.private is true"):
        upload(checkpoint, tmp_path / "store", repo_id="org/open")
    assert hub.commits_made == 0
    assert upload(checkpoint, tmp_path / "store", repo_id="org/open", private=False).revision


def test_a_file_that_arrives_damaged_is_found_and_sent_again(
    checkpoint: Path, tmp_path: Path, hub: Hub, token: str
) -> None:
    hub.spoil = {"model.safetensors", "config.json"}  # one by LFS, one as a git blob
    with pytest.raises(RemoteError, match=r"another content for config\.json, model\.safetensors"):
        upload(checkpoint, tmp_path / "store", repo_id="org/dpo", tag="v1")
    assert hub.repos["model", "org/dpo"].tags == {}
    hub.spoil = set()
    result = upload(checkpoint, tmp_path / "store", repo_id="org/dpo", tag="v1")
    assert hub.repos["model", "org/dpo"].tags == {"v1": result.revision}


@pytest.mark.parametrize(
    ("given", "failures", "error", "message"),
    [
        ("hf_wrong_but_secret", {}, ConfigError, r"\(401\)"),
        ("hf_readtoken", {}, ConfigError, r"\(403\)"),
        (TOKEN, {"/commit/": [500] * 20}, RemoteError, "500"),
        (TOKEN, {"/commit/": [412]}, RemoteError, "412"),
        (TOKEN, {"/api/models/org/dpo": [429] * 20}, RemoteError, "429"),
        (TOKEN, {"/lfs/": [507]}, RemoteError, "507"),
        (TOKEN, {"/api/repos/create": [400]}, ConfigError, "400"),
    ],
)
def test_failures_are_errors_of_the_tree_and_carry_no_token(
    checkpoint: Path,
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    given: str,
    failures: dict,
    error: type[PairlineError],
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", given)
    hub.failures = failures  # whose texts repeat the token
    caplog.set_level(logging.DEBUG)
    with pytest.raises(error, match=message) as caught:
        upload(checkpoint, tmp_path / "store", repo_id="org/dpo")
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
    assert given not in shown
    assert given not in caplog.text
    assert "uploading to org/dpo" in str(caught.value)


def test_no_token_and_no_server_are_told_apart(
    checkpoint: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="No Hub token to upload to org/dpo"):
        upload(checkpoint, tmp_path / "store", repo_id="org/dpo")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(RemoteError, match="did not answer"):
        upload(checkpoint, tmp_path / "store", repo_id="org/dpo", endpoint="http://127.0.0.1:1")


def test_a_server_without_xet_says_what_to_set(
    checkpoint: Path, tmp_path: Path, hub: Hub, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(ConfigError, match="Set HF_HUB_DISABLE_XET=1"):
        upload(checkpoint, tmp_path / "store", repo_id="org/dpo")


def test_the_token_is_in_no_file(
    checkpoint: Path, tmp_path: Path, hub: Hub, token: str, capfd: pytest.CaptureFixture[str]
) -> None:
    upload(checkpoint, tmp_path / "store", repo_id="org/dpo")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes()
    assert token not in "".join(capfd.readouterr())
    assert all(
        token.encode() not in content
        for content in hub.repos["model", "org/dpo"].commits.popitem()[1].values()
    )
