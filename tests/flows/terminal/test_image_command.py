"""``pairline image`` builds no image that the recipe's nodes could not use."""

import pytest
from rich.console import Console

from dpo_core.contract.errors import ConfigError
from flows.settings.overrides import validated
from flows.terminal.image_command import make_image
from tasks.image.cluster_image import SQUASHFS

RECIPE = {
    "checkpoint": {"source": "org/model-7B"},
    "data": {"sources": [{"source": "org/set"}]},
    "compute": {"launcher": "slurm"},
    "slurm": {"gpus_per_node": "h100:8"},
}


@pytest.mark.parametrize("variant", ["cpu", "cpu-olmo"])
def test_an_image_for_nodes_with_cards_has_cuda(tmp_path, variant: str):
    """On a login node, which shows no card; the first step would find out, hours later."""
    config = validated({**RECIPE, "image": {"variant": variant}}, "recipe")
    expected = variant.replace("cpu", "cuda")
    with pytest.raises(ConfigError, match=rf"gpus_per_node.*Set image\.variant to {expected}\."):
        make_image(config, Console(), only_wheelhouse=False, file=(SQUASHFS, tmp_path / "trainer.sqsh"))
