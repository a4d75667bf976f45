"""Which token pads a handed-over checkpoint.

An RLVR trainer (open-instruct's GRPO) asserts that a pad token exists and differs from eos, and it strips pads from
rendered prompts, so pad must also be a token that the chat template never writes. Many SFT checkpoints break one of
these (SmolLM2: pad = eos = ``<|im_end|>``).
"""

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dpo_core.contract.errors import CheckpointError
from dpo_core.data.render_limits import rendered_by_library

NEW_PAD_TOKEN = "<pad>"
# In the order they are tried: made for padding, then special tokens that pre-training used and chat templates do not.
KNOWN_PAD_TOKENS = (
    "<pad>",
    "<|pad|>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|PAD_TOKEN|>",
    "<|endoftext|>",
    "<|end_of_text|>",
)
RESERVED_TOKEN = re.compile(r"<\|?(reserved_special_token_\d+|reserved_\d+|unused\d+|extra_\d+)\|?>")
VOCABULARY_MULTIPLE = 8  # a grown embedding keeps shapes that accelerators like


@dataclass(frozen=True, slots=True)
class PadToken:
    """The chosen pad. ``is_new``: the tokenizer does not have it yet (``add_special_tokens``). ``vocab_size``: rows that
    the embedding must have; larger than before only if a new token found no spare row. ``why``: for the log."""

    token: str
    token_id: int
    is_new: bool
    vocab_size: int
    why: str


def _rendered_ids(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> set[int]:
    """Ids that a rendered conversation or plain encoding contains: special ones among them are taken."""
    ids = set(tokenizer.encode("hello"))
    for messages in (
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}],
        [{"role": "system", "content": "hello"}, {"role": "user", "content": "hello"}],
    ):
        try:
            text = rendered_by_library(
                tokenizer,
                messages,
                chat_template=chat_template,
                add_generation_prompt=messages[-1]["role"] == "user",
            )
        except CheckpointError:
            raise
        except Exception:  # a template may refuse a system message; it raises whatever it likes
            continue
        ids.update(tokenizer.encode(text, add_special_tokens=False))
    return ids


def choose_pad_token(
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None,
    vocab_size: int,
    eos_token_ids: tuple[int, ...] = (),
) -> PadToken:
    """Return the pad token for a checkpoint: its own if it satisfies the rules above, else an unused special token,
    else a new ``<pad>``. Changes nothing: the caller applies it.

    ``chat_template``: the template text that is handed over (None: the tokenizer's own). ``vocab_size``: rows of the
    embedding. ``eos_token_ids``: further ids that end an answer (generation config), beside the tokenizer's eos.

    The caller writes the result everywhere a reader looks: ``tokenizer.pad_token = token`` (for a new one
    ``tokenizer.add_special_tokens({"pad_token": token})``), ``config.pad_token_id`` and
    ``generation_config.pad_token_id = token_id``; and if ``vocab_size`` grew,
    ``model.resize_token_embeddings(vocab_size)`` (new rows are never attended to, so their values do not matter).
    """
    template = chat_template or tokenizer.chat_template or ""
    taken = {
        *_rendered_ids(tokenizer, chat_template),
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
        *eos_token_ids,
    }
    special = {
        token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))

    def usable(token: str | None) -> bool:
        return (
            token in special
            and special[token] not in taken
            and token not in template
            and special[token] < vocab_size
        )

    if usable(tokenizer.pad_token):
        return PadToken(
            tokenizer.pad_token, tokenizer.pad_token_id, False, vocab_size, "the checkpoint's own pad token"
        )
    reserved = sorted(
        (token for token in special if RESERVED_TOKEN.fullmatch(token)), key=special.__getitem__
    )
    for token in (*KNOWN_PAD_TOKENS, *reserved):
        if usable(token):
            return PadToken(
                token,
                special[token],
                False,
                vocab_size,
                f"an unused special token, as pad was {tokenizer.pad_token}",
            )
    return _new_pad_token(tokenizer, vocab_size)


def _new_pad_token(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> PadToken:
    """A token that the vocabulary does not have, in a row that the embedding has already where there is one."""
    token = NEW_PAD_TOKEN
    while token in tokenizer.get_vocab():
        token = token.replace(">", "_>")
    token_id = len(tokenizer)
    rows = (
        vocab_size
        if token_id < vocab_size
        else -(-(token_id + 1) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    )
    return PadToken(token, token_id, True, rows, "added, as no special token is free")
