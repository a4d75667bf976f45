"""Which ranks may form groups, told before any group is formed."""

import pytest

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import Sharding
from dpo_core.engine.fsdp_mesh import mesh_of, replicas_of


@pytest.mark.parametrize(
    ("world", "of_node", "degree", "together", "said"),
    [
        (6, 6, None, 4, "6 processes were started, 6 for a copy of the model"),
        (8, 8, 4, 8, "8 processes were started, 4 for a copy of the model"),
        (12, 6, None, 4, "6 processes of this node were started: a group would lie on two nodes"),
    ],
)
def test_groups_that_compute_together_are_whole_and_of_one_node(
    world: int, of_node: int, degree: int | None, together: int, said: str, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(of_node))
    with pytest.raises(ConfigError, match=said):
        mesh_of(Sharding(kind="fsdp2", degree=degree, tensor_degree=together), "cpu")


def test_copies_of_a_model_are_whole(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(ConfigError, match="6 processes were started"):
        replicas_of(Sharding(kind="fsdp2", degree=4))
    for degree in (None, 6):
        assert replicas_of(Sharding(kind="fsdp2", degree=degree)) is None
