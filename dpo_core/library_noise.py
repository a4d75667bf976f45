"""What libraries would print in every step, and nobody who runs one can act on."""

import logging
import re
import warnings
from collections.abc import Callable

# DeepSpeed calls what torch has given other names: every collective of every step would say so (microsoft/DeepSpeed 0.19).
RENAMED_IN_TORCH = (
    *("all_gather_into_tensor", "reduce_scatter_tensor", "_all_gather_base", "_reduce_scatter_base"),
    *("all_reduce_coalesced", "all_gather_coalesced"),
)
# transformers imports torchao wherever it is installed (0.18): kernels for another Python and other cards cannot be loaded,
# and two of its enumerations are registered in a way that torch 2.13 no longer needs.
OF_TORCHAO = {"torchao": "Failed to load ", "torch.utils._pytree": "<enum '"}


def silence_libraries() -> None:
    """Do not print exactly these deprecations and notes; everything else is printed as before."""
    names = "|".join(map(re.escape, RENAMED_IN_TORCH))
    warnings.filterwarnings("ignore", rf"`torch\.distributed\.({names})` ", FutureWarning)
    for name, beginning in OF_TORCHAO.items():
        logging.getLogger(name).addFilter(_all_but(beginning))


def _all_but(beginning: str) -> Callable[[logging.LogRecord], bool]:
    """A filter that passes what begins otherwise."""
    return lambda record: not record.getMessage().startswith(beginning)
