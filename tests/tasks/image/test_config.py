"""What a recipe may say of the image: nothing that could be moved, nothing that contradicts itself."""

import pytest
from pydantic import ValidationError

from dpo_core.contract.errors import ConfigError
from tasks.image.config import ImageConfig, check_variant
from tasks.image.image_ref import ImageRef
from tasks.launch.compute import Machine

SHA = "sha256:" + "a" * 64


def test_steps_run_by_digest_else_by_id():
    image = ImageRef(variant="cpu", image_id=SHA, size_bytes=1)
    assert image.reference == SHA
    assert (
        image.model_copy(update={"digest": f"host:5000/trainer@{SHA}"}).reference
        == f"host:5000/trainer@{SHA}"
    )


@pytest.mark.parametrize("use", [SHA, f"host:5000/team/trainer@{SHA}"])
def test_an_image_is_named_by_content(use):
    assert ImageConfig(use=use).use == use


@pytest.mark.parametrize("use", ["trainer", "trainer:latest", "host:5000/trainer:v1", "sha256:abc", "a" * 64])
def test_a_name_that_can_be_moved_is_refused(use):
    with pytest.raises(ValidationError):
        ImageConfig(use=use)


@pytest.mark.parametrize(
    "repository", ["host:5000/trainer", "registry.example.org/team/trainer", "localhost/trainer"]
)
def test_a_registry_may_be_pushed_to(repository):
    assert ImageConfig(repository=repository, push=True).push


def test_without_a_registry_nothing_is_pushed():
    with pytest.raises(ValidationError, match=r"image\.push needs a registry"):
        ImageConfig(push=True)
    with pytest.raises(ValidationError, match="names none"):
        ImageConfig(repository="team/trainer", push=True)


def test_an_image_without_cuda_is_not_built_for_a_machine_with_gpus():
    gpus, none = Machine(num_cores=8, num_gpus=2), Machine(num_cores=8, num_gpus=0)
    with pytest.raises(
        ConfigError, match=r"shows 2 GPUs.*Set image\.variant to cuda, or hide.*CUDA_VISIBLE_DEVICES="
    ):
        check_variant(ImageConfig(), gpus)
    check_variant(ImageConfig(), none)
    check_variant(ImageConfig(variant="cuda"), gpus)
    check_variant(ImageConfig(use=SHA), gpus)
