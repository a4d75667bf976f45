"""Whether the ranks read their parts of the weights from the checkpoint's files: all of them do, or none."""

import socket

from accelerate import Accelerator
from transformers import PreTrainedModel

from dpo_core.contract.errors import CheckpointError
from dpo_core.engine.distributed import by_every_rank
from dpo_core.model.unread_weights import UnreadWeights, take_unread


def agreed_unread(accelerator: Accelerator, model: PreTrainedModel) -> UnreadWeights | None:
    """Return what is to be read by this rank; None where rank 0 has read all. All ranks call it together.

    Raises ``CheckpointError`` on each of them if some did not find the files' tensors: these would wait for values that the
    others read for themselves.
    """
    unread = take_unread(model)
    found = by_every_rank(accelerator, lambda *_: (unread is not None, socket.gethostname()))
    if len({is_there for is_there, _ in found}) > 1:
        lack = [f"rank {rank} on {host}" for rank, (is_there, host) in enumerate(found) if not is_there]
        raise CheckpointError(
            f"{', '.join(lack[:4])}{' ...' if len(lack) > 4 else ''} did not find the tensors that the other processes "
            f"found in the safetensors files of {model.name_or_path}.",
            "They must be on a file system that all nodes share; if they are, it showed them late: start again.",
        )
    return unread
