"""Whether a chat template closes an assistant's turn with a token at which generation stops."""

from typing import TYPE_CHECKING

from dpo_core.contract.row_warnings import NO_END_MARK
from dpo_core.data.before_answer import SENTINEL

if TYPE_CHECKING:
    from dpo_core.data.tokenize import PairTokenizer

HELLO = {"role": "user", "content": "hello"}
PLAIN = ([HELLO], [{"role": "system", "content": "hello"}, HELLO])  # some templates want a system turn


def end_mark_warning(pair_tokenizer: "PairTokenizer") -> str | None:
    """Return what to say of a template whose answers end with no special token; None if it has one, or if it refuses
    plain conversations."""
    probes = [[*turns, {"role": "assistant", "content": SENTINEL}] for turns in PLAIN]
    texts = pair_tokenizer.renderer.render(probes, [None] * len(probes))
    text = next((text for text in texts if isinstance(text, str) and SENTINEL in text), None)
    if text is None:
        return None
    tail, tokenizer = text.rpartition(SENTINEL)[2], pair_tokenizer.tokenizer
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(
        tokenizer.all_special_tokens
    )
    if any(token in tail for token in special):
        return None
    return NO_END_MARK.format(found=f" but with {tail.strip()[:40]!r}" if tail.strip() else "")
