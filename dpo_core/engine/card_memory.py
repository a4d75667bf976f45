"""What is left of a card's memory."""

import torch

USED_SHARE = 0.9  # of what is left; the allocator cannot use all of it


def left_on_card(device: torch.device) -> int | None:
    """Return the bytes that this process may still take on its card; None without a card."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
