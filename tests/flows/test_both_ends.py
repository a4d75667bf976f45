"""Upload, hand-off and intake as real Prefect runs with real child processes; and where the token does not show."""

import logging
from pathlib import Path

import pytest
from huggingface_hub import constants
from prefect import flow
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client

from dpo_core.contract.destination_config import UploadConfig
from dpo_core.contract.errors import ConfigError, HandoffRefused
from dpo_core.contract.store import hash_files
from dpo_core.contract.tracking_config import WANDB_KEY, TrackingConfig
from flows.rlvr_intake import rlvr_intake
from tasks.hand_off_rlvr import hand_off_rlvr, handoff_path
from tasks.handoff.config import HandoffConfig
from tasks.handoff.intake_config import IntakeConfig
from tasks.handoff.schema import read_handoff
from tasks.hub.tracker_key import with_tracker_key
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import launcher_for
from tasks.launch.workplace import Workplace
from tasks.upload_checkpoint import upload_checkpoint
from tests.hub_server import serve
from tests.tasks.published import card_of, export_of, inputs_of
from tests.tiny_models import make_model

TOKEN = "hf_planted_0123456789"
BLOCK = "hub-token"


@flow(name="publish-test")
def publish(folder: Path, store: Path, upload: UploadConfig) -> Path:
    """The last two tasks of the stage."""
    uploaded = upload_checkpoint(export_of(folder), upload, store, card_of(folder))
    inputs = inputs_of(folder, uploaded).model_copy(update={"token_block": upload.token_block})
    hand_off_rlvr(inputs, HandoffConfig(), Workplace(store, launcher_for(ComputeConfig(num_processes=1))))
    return handoff_path(store, inputs, HandoffConfig())


def everything_prefect_keeps() -> str:
    """Logs, artifacts, flow runs and task runs of the server, as text."""
    with get_client(sync_client=True) as client:
        found = [
            client.request("POST", f"/{what}/filter", json={"limit": 200}).json()
            for what in ("logs", "artifacts", "flow_runs", "task_runs")
        ]
    assert found[0]
    assert found[2]
    return repr(found)


@pytest.mark.integration
@pytest.mark.usefixtures("prefect_server")
def test_private_upload_with_a_secret_block_and_a_checked_intake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    caplog.set_level(logging.DEBUG)
    folder, store = make_model(tmp_path / "export"), tmp_path / "store"
    with serve() as hub:
        hub.write_tokens = {TOKEN}
        with pytest.raises(ConfigError, match="no such Prefect Secret block"):
            publish(
                folder,
                store,
                UploadConfig(repo_id="org/dpo", endpoint=hub.endpoint, token_block="no-such-block"),
            )
        Secret(value=TOKEN).save(BLOCK)
        place = Workplace(store, launcher_for(ComputeConfig()))
        online = TrackingConfig(trackers=("wandb",), wandb_mode="online", wandb_key_block=BLOCK)
        with with_tracker_key(place, online) as its_place:
            assert its_place.context.secret(WANDB_KEY) == TOKEN
        upload = UploadConfig(repo_id="org/dpo", endpoint=hub.endpoint, token_block=BLOCK, tag="v1")
        path = publish(folder, store, upload)
        assert publish(folder, store, upload) == path
        assert hub.commits_made == 1
        with pytest.raises(
            HandoffRefused, match=f"is on {hub.endpoint}, and hand-offs are taken from https://"
        ):
            rlvr_intake(str(path), tmp_path / "receiver", token_block=BLOCK)
        receives = IntakeConfig(endpoint=hub.endpoint)
        accepted = rlvr_intake(str(path), tmp_path / "receiver", token_block=BLOCK, intake=receives)
        assert accepted.checkpoint.files == hash_files(folder) | {
            "README.md": accepted.checkpoint.files["README.md"]
        }
        assert accepted.answer == read_handoff(path).probe.answer

        files = hub.repos["model", "org/dpo"].commits[accepted.checkpoint.revision]
        files["config.json"] = files["config.json"].replace(b"32", b"33", 1)
        with pytest.raises(HandoffRefused, match=r"config\.json is damaged"):
            rlvr_intake(path.as_uri(), tmp_path / "receiver", token_block=BLOCK, intake=receives)
        assert TOKEN not in everything_prefect_keeps()
    assert TOKEN not in caplog.text
    written = [file for root in (store, tmp_path / "receiver") for file in root.rglob("*") if file.is_file()]
    assert len(written) > 3
    assert not [file for file in written if TOKEN.encode() in file.read_bytes()]
