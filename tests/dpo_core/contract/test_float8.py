"""``train.float8``: where it goes, and that it is content of what it changes."""

import pytest
from pydantic import ValidationError

from dpo_core.contract.config import TrainConfig
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.float8 import check_float8, check_float8_card
from dpo_core.contract.jobs import ReferenceJob
from dpo_core.contract.refs import CheckpointRef, DatasetRef
from dpo_core.contract.section import content_of

ON_IT = {"implementation": "olmo_core", "precision": "bf16", "float8": "rowwise"}
SIZES = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 2}

REFERENCE = {
    "data": DatasetRef(path="/d", fingerprint="d", files={}),
    "checkpoint": CheckpointRef(path="/c", fingerprint="c", tokenizer_fingerprint="t", source="c"),
    "cache_dir": "/cache",
}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"implementation": "transformers"}, "products of OLMo-core's layers. Set train.implementation"),
        ({"precision": "fp32"}, "Set train.precision to bf16, or train.float8 to none"),
        ({"precision": "bf16_pure"}, "Set train.precision to bf16"),
        ({"compile_regions": True}, "never tried with train.compile_regions"),
        ({"float8": "tensorwise"}, "'rowwise' or 'rowwise_with_gw_hp'"),
    ],
)
def test_settings_that_it_does_not_go_with_are_refused(other, said):
    TrainConfig(**ON_IT)
    with pytest.raises(ValidationError, match=said):
        TrainConfig(**ON_IT | other)


def test_it_is_content_of_a_training_and_of_reference_values():
    """None is what was before: fingerprints and caches stay."""
    without = {name: value for name, value in ON_IT.items() if name != "float8"}
    assert content_of(TrainConfig(**ON_IT)) == content_of(TrainConfig(**without)) | {"float8": "rowwise"}
    assert "float8" not in content_of(TrainConfig())
    job = ReferenceJob(**REFERENCE, precision="bf16", implementation="olmo_core")
    assert "float8" not in job.scores_content
    keys = [
        job.model_copy(update={"float8": recipe}).scores_content
        for recipe in ("none", "rowwise", "rowwise_with_gw_hp")
    ]
    assert all(keys.count(key) == 1 for key in keys)


def test_in_float8_the_layout_is_content_of_reference_values():
    """Packed rows and padded ones are 0.07 nats a token apart there: the margin of step 0 would not be zero."""

    def content(**how: str) -> dict:
        return content_of(ReferenceJob(**REFERENCE, **how))

    on_it = {name: value for name, value in ON_IT.items() if name != "float8"}
    assert content(**on_it) == content(**on_it, forward="padded")
    assert content(**ON_IT) == content(**ON_IT, forward="padded") | {"forward": "packed"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, ""),
        ({"intermediate_size": 168}, "its intermediate_size is 168"),
        ({"hidden_size": 72, "head_dim": 16}, "its hidden_size is 72"),
        ({"head_dim": 10}, "its num_attention_heads x head_dim is 40"),
        ({"num_key_value_heads": 1, "head_dim": 8}, "its num_key_value_heads x head_dim is 8"),
    ],
)
def test_matrices_of_other_sizes_than_multiples_of_16_are_refused(config, said):
    check_float8(SIZES | config, "org/model", "none")
    if said:
        with pytest.raises(ConfigError, match=f"rowwise does not go with org/model: {said}"):
            check_float8(SIZES | config, "org/model", "rowwise")
    else:
        check_float8(SIZES | config, "org/model", "rowwise")


def test_a_card_needs_float8_units():
    with pytest.raises(ConfigError, match=r"capability 8\.9 or later .* and NVIDIA A100 has 8\.0"):
        check_float8_card((8, 0), "NVIDIA A100")
    check_float8_card((8, 9), "NVIDIA L4")
    check_float8_card((10, 0), "NVIDIA B200")
