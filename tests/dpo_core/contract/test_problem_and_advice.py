"""An error's problem and its advice are two things: who knows better what to do takes the problem alone."""

import pickle

import pytest

from dpo_core.contract.errors import HandoffRefused, StoreError
from dpo_core.contract.store import verify_files
from dpo_core.engine.checkpoint import newest_checkpoint
from tasks.handoff.final_place import verify_place
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint


def test_problem_and_advice_make_the_message_and_survive_a_process():
    error = StoreError("x is missing.", "Delete y.")
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert (str(each), each.problem, each.advice) == (
            "x is missing. Delete y.",
            "x is missing.",
            "Delete y.",
        )
    assert (str(StoreError("All in one.")), StoreError("All in one.").advice, str(StoreError())) == (
        "All in one.",
        "",
        "",
    )


def test_a_damaged_training_checkpoint_is_not_said_to_be_made_again(tmp_path, caplog):
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    hashes = dict.fromkeys(("model.safetensors", "optimizer.safetensors", "state.json"), "0" * 64)
    (folder / "manifest.json").write_text(str(hashes).replace("'", '"'))
    with pytest.raises(StoreError, match=r"is missing\. Delete .* to have it made again"):
        verify_files(folder, hashes)
    assert newest_checkpoint(tmp_path, "job") is None
    assert "is damaged and not used" in caplog.text
    assert "made again" not in caplog.text


def test_a_place_that_is_not_what_was_handed_off_has_one_advice(tmp_path):
    place = tmp_path / "published"
    place.mkdir()
    (tmp_path / "elsewhere").write_text("weights")
    (place / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    uploaded = UploadedCheckpoint(
        kind="directory",
        uri=place.as_uri(),
        directory=place,
        revision="r",
        files={"model.safetensors": "0" * 64},
    )
    with pytest.raises(HandoffRefused) as caught:
        verify_place(place, uploaded)
    assert "is a link to" in str(caught.value)
    assert "put a copy" not in str(caught.value)
    assert str(caught.value).endswith("and have the stage publish it again.")
