"""The hand-off's rules, held to the SFT checkpoint: what fails them is never trained."""

from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError
from tasks.handoff.config import HandoffConfig
from tasks.launch.workplace import Workplace
from tasks.rehearse_export import rehearse_export
from tests.launch_here import LaunchHere
from tests.tiny_models import CHATML, make_model, make_tokenizer
from tests.tiny_stage import checkpoint_ref


def test_what_fails_the_rules_of_the_hand_off_is_refused_each_time(tmp_path: Path) -> None:
    """It loads, is written and comes back; but an RLVR trainer strips pads from prompts, and this template writes them."""
    # Neither is a special token left free, nor is the name of a new one.
    template = CHATML.replace("<|im_start|>", "<|im_start|><|endoftext|><pad>")
    model, launcher = make_model(tmp_path / "sft", make_tokenizer(template)), LaunchHere()
    config, place = CheckpointConfig(source="org/sft"), Workplace(tmp_path / "store", launcher)
    for _ in range(2):  # the rehearsal itself went well, so a second run finds its result
        with (
            disable_run_logger(),
            pytest.raises(
                CheckpointError, match=r"org/sft could not be handed off .*: pad_is_no_template_token"
            ),
        ):
            rehearse_export.fn(config, "fp32", HandoffConfig(), checkpoint_ref(model), place)
    assert launcher.steps == ["rehearse"]
