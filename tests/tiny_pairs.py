"""Random tokenised pairs for tests of batching, scoring and training."""

import numpy as np

from dpo_core.data.pairs import TokenizedPair


def make_pair(
    rng: np.random.Generator,
    prefix: int,
    chosen: int,
    rejected: int,
    vocab: int = 300,
    train_prompt_turn: bool = False,
) -> TokenizedPair:
    """A pair with a shared prompt of ``prefix`` tokens; its answers carry the loss, and part of the prompt if asked."""
    prompt = rng.integers(0, vocab, prefix)

    def side(length: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.concatenate([prompt, rng.integers(0, vocab, length)]).astype(np.int32)
        trained = np.arange(prefix + length) >= prefix
        if train_prompt_turn:
            trained[prefix // 3 : prefix // 2] = True
        return ids, trained

    (chosen_ids, chosen_trained), (rejected_ids, rejected_trained) = side(chosen), side(rejected)
    return TokenizedPair(rng.bytes(16).hex(), chosen_ids, chosen_trained, rejected_ids, rejected_trained)
