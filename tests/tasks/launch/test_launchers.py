"""A launcher is a name, a row and a class; each name of the settings has them all."""

from typing import get_args

import pytest

from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import Launcher
from tasks.launch.launchers import LAUNCHERS, LauncherName


def test_every_name_of_the_settings_has_a_row():
    assert (
        set(LAUNCHERS)
        == set(get_args(LauncherName))
        == set(get_args(ComputeConfig.model_fields["launcher"].annotation))
    )


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_row_gives_a_class_with_the_members_of_a_launcher(name: LauncherName):
    made = LAUNCHERS[name]()
    members = [member for member in vars(Launcher) if not member.startswith("_")] + list(
        Launcher.__annotations__
    )
    missing = [
        member for member in members if not hasattr(made, member) and member not in made.__annotations__
    ]
    assert not missing
