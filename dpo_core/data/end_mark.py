"""Whether a chat template closes an assistant's turn with a token at which generation stops."""

from typing import TYPE_CHECKING

from dpo_core.contract.row_warnings import NO_END_MARK

if TYPE_CHECKING:
    from dpo_core.data.tokenize import PairTokenizer

PROBE = "pairline end mark probe"


def end_mark_warning(pair_tokenizer: "PairTokenizer") -> str | None:
    """Return what to say of a template whose answers end with no special token; None if it has one, or if it refuses
    a plain conversation."""
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": PROBE}]
    text = pair_tokenizer.renderer.render([turns], [None])[0]
    if not isinstance(text, str) or PROBE not in text:
        return None
    tail, tokenizer = text.rpartition(PROBE)[2], pair_tokenizer.tokenizer
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(
        tokenizer.all_special_tokens
    )
    if any(token in tail for token in special):
        return None
    return NO_END_MARK.format(found=f" but with {tail.strip()[:40]!r}" if tail.strip() else "")
