"""The task on a real Prefect server: the build in its log, the record as an artifact, credentials from a block."""

import functools
import json
import time
from pathlib import Path

import pytest
from prefect import flow
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import ArtifactSort, LogSort

import tasks.build_image
from dpo_core.contract.errors import ConfigError
from tasks.build_image import build_image
from tasks.image.config import ImageConfig
from tasks.image.image_ref import SBOM_FILE, ImageRef
from tasks.image.trainer_image import trainer_image
from tasks.show.artifacts import show_image
from tasks.text.escape import markdown_text
from tests.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


@flow
def only_the_image(config: ImageConfig, store: Path) -> tuple[ImageRef, Path]:
    image, record = build_image.with_options(retries=0)(config, store)
    show_image(image, record, "dpo")
    return image, record


def logged(text: str, wait_seconds: float = PATIENCE_SECONDS) -> bool:
    """Prefect sends logs in batches, so the last lines come a little later."""
    deadline = time.monotonic() + wait_seconds
    with get_client(sync_client=True) as client:
        newest = functools.partial(client.read_logs, None, limit=200, sort=LogSort.TIMESTAMP_DESC)
        while not (found := any(text in line.message for line in newest())):
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
    return found


def test_the_build_is_the_tasks_log_and_its_record_an_artifact(build, tmp_path, monkeypatch):
    small = functools.partial(
        trainer_image, root=tmp_path / "checkout"
    )  # the task builds the checkout that it lies in
    monkeypatch.setattr(tasks.build_image, "trainer_image", small)
    config = ImageConfig(repository="pairline-small", wheelhouse=tmp_path / "wheels")
    image, record = only_the_image(config, tmp_path / "store")
    assert json.loads((record / "image.json").read_text()) == image.model_dump()
    for line in ("Step 3/", "alpha loads", f"Trainer image {image.image_id} of commit {image.commit[:12]}"):
        assert logged(line), line
    with get_client(sync_client=True) as client:
        newest = next(
            one for one in client.read_artifacts(sort=ArtifactSort.CREATED_DESC) if one.key.endswith("-image")
        )
    table = {row["what"]: row["value"] for row in json.loads(newest.data)}
    assert (table["image_id"], table["commit"], table["context_sha256"]) == (
        image.image_id,
        image.commit,
        image.context_sha256,
    )
    assert markdown_text(str(record / SBOM_FILE)) in newest.description


def test_the_credentials_come_from_a_block(build, registry, tmp_path, caplog):
    small, _ = build()
    repository = f"{registry.address}/team/trainer"
    config = ImageConfig(use=small.image_id, repository=repository, push=True, registry_block="registry")
    with pytest.raises(ConfigError, match="no such Prefect Secret block"):
        only_the_image(config, tmp_path / "store")
    Secret(value={"username": registry.login.username, "password": registry.login.password}).save("registry")
    assert only_the_image(config, tmp_path / "store")[0].reference.startswith(f"{repository}@sha256:")
    assert registry.login.password not in caplog.text
    assert logged(f"Trainer image {repository}@sha256:")
    assert not logged(registry.login.password, wait_seconds=0)
