"""From a published checkpoint to ``handoff.json`` and through the intake, with a hub and with a directory."""

import json
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from dpo_core.contract.destination_config import UploadConfig
from dpo_core.contract.errors import ConfigError, HandoffRefused, RemoteError
from dpo_core.contract.section import content_of
from dpo_core.contract.store import fingerprint, write_json
from tasks.hand_off_rlvr import HandoffInputs, hand_off_rlvr, handoff_path
from tasks.handoff.config import HandoffConfig
from tasks.handoff.schema import RLVRHandoff, read_handoff
from tasks.handoff.signature import write_key_file
from tasks.intake import accept
from tasks.launch.workplace import Workplace
from tasks.upload_checkpoint import upload_checkpoint
from tests.hub_server import Hub
from tests.launch_here import LaunchHere
from tests.tasks.published import card_of, export_of, inputs_of

CONFIG = HandoffConfig()


def publish(folder: Path, store: Path, **upload: object) -> HandoffInputs:
    with disable_run_logger():
        uploaded = upload_checkpoint.fn(export_of(folder), UploadConfig(**upload), store, card_of(folder))
    return inputs_of(folder, uploaded)


def hand_off(inputs: HandoffInputs, store: Path, launcher: LaunchHere | None = None) -> RLVRHandoff:
    with disable_run_logger():
        return hand_off_rlvr.fn(inputs, CONFIG, Workplace(store, launcher or LaunchHere()))


def test_a_directory_is_handed_off_and_accepted(checkpoint: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    inputs = publish(checkpoint, store)
    handoff = hand_off(inputs, store)
    path = handoff_path(store, inputs, CONFIG)
    assert read_handoff(path) == handoff
    assert path.parent.parent == store / "handoff"
    assert handoff.checkpoint.uri == inputs.uploaded.directory.as_uri()
    assert handoff.probe.answer
    assert all(check.passed for check in handoff.rules)
    accepted = accept(path, Workplace(tmp_path / "other-store", LaunchHere()))
    assert accepted.checkpoint == handoff.checkpoint
    assert accepted.grpo_command == handoff.grpo_command
    assert accepted.answer == handoff.probe.answer


def test_a_second_run_reuses_it_and_a_damaged_checkpoint_does_not(checkpoint: Path, tmp_path: Path) -> None:
    store, launcher = tmp_path / "store", LaunchHere()
    inputs = publish(checkpoint, store)
    first = hand_off(inputs, store, launcher)
    reused = inputs.model_copy(update={"uploaded": inputs.uploaded.model_copy(update={"reused": True})})
    assert hand_off(reused, store, launcher) == first
    assert launcher.steps == ["answer"]
    (inputs.uploaded.directory / "config.json").write_text("{}")
    with pytest.raises(HandoffRefused, match=r"config\.json is damaged"):
        hand_off(inputs, store, launcher)
    assert not handoff_path(store, inputs, CONFIG).exists()  # what is no longer true is not left lying about


def test_nothing_is_written_when_a_rule_fails(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        values = json.loads((checkpoint / name).read_text())
        values |= {"pad_token": "<|im_end|>"} if name == "tokenizer_config.json" else {"pad_token_id": 2}
        (checkpoint / name).write_text(json.dumps(values))  # SmolLM2's pad = eos
    store = tmp_path / "store"
    inputs = publish(checkpoint, store)
    with pytest.raises(
        HandoffRefused, match=r"cannot start an RLVR run: pad_differs_from_eos \(pad 2, eos \[2\]\)"
    ):
        hand_off(inputs, store)
    assert not handoff_path(store, inputs, CONFIG).exists()


def test_nothing_is_written_when_the_checkpoint_does_not_load(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4}'
    )
    store = tmp_path / "store"
    inputs = publish(checkpoint, store)
    with pytest.raises(Exception, match="cannot be loaded by transformers"):
        hand_off(inputs, store)
    assert not handoff_path(store, inputs, CONFIG).exists()


def test_another_place_is_probed_anew(checkpoint: Path, tmp_path: Path) -> None:
    store, launcher = tmp_path / "store", LaunchHere()
    hand_off(publish(checkpoint, store), store, launcher)
    hand_off(publish(checkpoint, store, directory=tmp_path / "final"), store, launcher)
    assert launcher.steps == ["answer", "answer"]


def test_the_intake_names_a_corrupted_or_missing_file(checkpoint: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    inputs = publish(checkpoint, store)
    hand_off(inputs, store)
    path, directory = handoff_path(store, inputs, CONFIG), inputs.uploaded.directory
    (directory / "extra.safetensors").write_bytes(b"")
    with pytest.raises(HandoffRefused, match=r"files that were not handed off: extra\.safetensors"):
        accept(path, Workplace(tmp_path / "other", LaunchHere()))
    (directory / "extra.safetensors").unlink()
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?" if weights.read_bytes()[-1:] != b"?" else b"!")
    with pytest.raises(HandoffRefused, match=r"model\.safetensors is damaged"):
        accept(path, Workplace(tmp_path / "other", LaunchHere()))
    weights.unlink()
    with pytest.raises(HandoffRefused, match=r"model\.safetensors is missing"):
        accept(path, Workplace(tmp_path / "other", LaunchHere()))


def test_the_intake_believes_its_own_eyes(checkpoint: Path, tmp_path: Path) -> None:
    """A hand-off that is whole but was composed of something untrue."""
    store = tmp_path / "store"
    inputs = publish(checkpoint, store)
    handoff = hand_off(inputs, store)
    lying = handoff.model_copy(
        update={"tokens": handoff.tokens.model_copy(update={"vocab_size": 4096})}
    ).sealed()
    write_json(tmp_path / "handoff.json", lying)
    with pytest.raises(
        HandoffRefused, match="has another vocab_size than was handed off: 351, expected 4096"
    ):
        accept(tmp_path / "handoff.json", Workplace(tmp_path / "other", LaunchHere()))
    moving = handoff.model_copy(
        update={"checkpoint": handoff.checkpoint.model_copy(update={"revision": "main"})}
    ).sealed()
    write_json(tmp_path / "handoff.json", moving)
    with pytest.raises(HandoffRefused, match="revision_is_immutable"):
        accept(tmp_path / "handoff.json", Workplace(tmp_path / "other", LaunchHere()))


def test_a_hub_checkpoint_is_downloaded_afresh_by_both_sides(
    checkpoint: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writetoken")
    store = tmp_path / "store"
    inputs = publish(checkpoint, store, repo_id="org/dpo", endpoint=hub.endpoint)
    hub.requests.clear()
    handoff = hand_off(inputs, store)
    path = handoff_path(store, inputs, CONFIG)
    assert any(f"/resolve/{inputs.uploaded.revision}/config.json" in request for request in hub.requests)
    assert not list(path.parent.glob("checkpoint-*"))  # the copy is gone again
    assert f"--model_revision {inputs.uploaded.revision}" in handoff.grpo_command
    assert b"hf_writetoken" not in path.read_bytes()
    monkeypatch.setenv("HF_TOKEN", "hf_readtoken")  # the receiving side only reads
    assert accept(path, Workplace(tmp_path / "other", LaunchHere())).answer == handoff.probe.answer
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"\(401\)"):
        accept(path, Workplace(tmp_path / "other", LaunchHere()))


def test_a_hub_that_serves_another_file_is_refused(
    checkpoint: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writetoken")
    store = tmp_path / "store"
    inputs = publish(checkpoint, store, repo_id="org/dpo", endpoint=hub.endpoint)
    files = hub.repos["model", "org/dpo"].commits[inputs.uploaded.revision]
    files["config.json"] = files["config.json"].replace(b"32", b"33", 1)
    with pytest.raises(HandoffRefused, match=r"config\.json is damaged"):
        hand_off(inputs, store)
    del files["config.json"]
    with pytest.raises((HandoffRefused, ConfigError, RemoteError), match=r"config\.json"):
        hand_off(inputs, store)
    assert not handoff_path(store, inputs, CONFIG).exists()


def test_versions_without_signatures_and_this_one_read_each_other(checkpoint: Path, tmp_path: Path) -> None:
    inputs = publish(checkpoint, tmp_path / "store")
    hand_off(inputs, tmp_path / "store")
    written = json.loads(handoff_path(tmp_path / "store", inputs, CONFIG).read_bytes())
    assert "signature" not in written  # that version refuses what it does not know
    fields = {key: value for key, value in written.items() if key != "fingerprint"}
    assert written["fingerprint"] == fingerprint(fields)
    # Where the hand-off of the same inputs lies must not change either, else every finished run would hand off again.
    before = {
        "grpo_dataset": CONFIG.grpo_dataset,
        "grpo_beta": CONFIG.grpo_beta,
        "probe_prompt": CONFIG.probe_prompt,
        "grpo_learning_rate": CONFIG.grpo_learning_rate,
    }
    assert content_of(CONFIG) == before == content_of(HandoffConfig(signing_key_file="key.pem"))


def test_a_finished_hand_off_is_signed_when_a_key_is_set(checkpoint: Path, tmp_path: Path) -> None:
    store, launcher = tmp_path / "store", LaunchHere()
    inputs = publish(checkpoint, store)
    unsigned = hand_off(inputs, store, launcher)
    write_key_file(tmp_path / "key.pem")
    with disable_run_logger():
        signed = hand_off_rlvr.fn(
            inputs, HandoffConfig(signing_key_file=tmp_path / "key.pem"), Workplace(store, launcher)
        )
    assert launcher.steps == ["answer"]
    assert signed.signature
    assert signed.fingerprint == unsigned.fingerprint  # so its event is known
    assert read_handoff(handoff_path(store, inputs, CONFIG)) == signed
