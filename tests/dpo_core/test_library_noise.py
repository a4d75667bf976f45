"""Which warnings of libraries a step does not print."""

import re
import warnings

from dpo_core.library_noise import RENAMED_IN_TORCH, silence_libraries

DEPRECATED = "`torch.distributed.{}` is deprecated. Please use `torch.distributed.all_gather_single` instead."


def test_renamed_collectives_are_silent_and_nothing_else():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        silence_libraries()
        for name in RENAMED_IN_TORCH:
            warnings.warn(DEPRECATED.format(name), FutureWarning, stacklevel=1)
        assert not seen
        warnings.warn(DEPRECATED.format("reduce_op"), FutureWarning, stacklevel=1)
        warnings.warn(DEPRECATED.format("reduce_scatter_tensor"), UserWarning, stacklevel=1)
    assert [re.search(r"distributed\.(\w+)", str(one.message))[1] for one in seen] == [
        "reduce_op",
        "reduce_scatter_tensor",
    ]
