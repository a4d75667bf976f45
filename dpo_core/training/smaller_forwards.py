"""Forwards that an earlier start of a run found not to fit: the next start tries smaller ones.

Where ranks share weights out, a forward that failed leaves them out of step, each somewhere else among the layers: nothing
can be tried again by the same processes.
"""

import logging

import torch
from accelerate import Accelerator

from dpo_core.contract.errors import StoreError
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.section import Section
from dpo_core.contract.store import write_json

log = logging.getLogger(__name__)

BOUND_FILE, LARGEST_BYTES = "tokens_per_forward.json", 1 << 16


class Bound(Section):
    """The most tokens that a forward may have, on cards of one kind."""

    tokens: int
    card: str
    num_processes: int


def keep_bound(job: TrainJob, accelerator: Accelerator, tokens: int) -> None:
    """Leave it for the next start. Any rank may do so, and several write the same."""
    write_json(job.out_dir / BOUND_FILE, _bound(accelerator, tokens))


def bound_of(job: TrainJob, accelerator: Accelerator) -> int | None:
    """Return what an earlier start with as many cards of this kind has left, if any."""
    try:
        bound = Bound.model_validate_json(read_regular(job.out_dir / BOUND_FILE, LARGEST_BYTES))
    except (OSError, ValueError, StoreError):
        return None
    if bound != _bound(accelerator, bound.tokens):
        return None
    log.info("an earlier start found no room for more than %d tokens a forward", bound.tokens)
    return bound.tokens


def _bound(accelerator: Accelerator, tokens: int) -> Bound:
    device = accelerator.device
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Bound(tokens=tokens, card=card, num_processes=accelerator.num_processes)
