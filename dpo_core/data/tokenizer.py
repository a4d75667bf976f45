"""A checkpoint's tokenizer with the chat template that a recipe chooses."""

from pathlib import Path
from typing import TYPE_CHECKING

from dpo_core.contract.chat_templates import TEMPLATE_NAMES, is_template_text
from dpo_core.contract.errors import CheckpointError, ConfigError
from dpo_core.data.chat_template import Renderer
from dpo_core.data.named_templates import NAMED_TEMPLATES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS = "{{ bos_token }}"  # as open-instruct begins a template with --add_bos


def load_tokenizer(
    path: Path, chosen: str | None = None, trust_remote_code: bool = False, add_bos: bool = False
) -> "PreTrainedTokenizerBase":
    """Return the tokenizer in the directory ``path`` with its own chat template, or the one ``chosen``: a name, or a
    template's text. With ``add_bos`` the template begins with the bos token.

    Raises ``ConfigError`` for an unknown name, ``CheckpointError`` for a tokenizer that cannot be loaded, has no
    template, or lacks a token that the template writes.
    """
    template = _template_text(chosen) if chosen else None
    if not Path(path).is_dir():
        raise CheckpointError(f"{path} is not a directory; a tokenizer was expected there.")
    tokenizer = _fast_tokenizer(path, trust_remote_code)
    if template is not None:
        tokenizer.chat_template = template
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"The tokenizer in {path} has no chat template. Name one with "
            f"`checkpoint.chat_template`: {', '.join(TEMPLATE_NAMES)}."
        )
    if add_bos:
        _begin_with_bos(tokenizer, path)
    for token in ("bos_token", "eos_token"):
        if template is not None and token in template and getattr(tokenizer, token) is None:
            named = f"`{chosen}`" if chosen in NAMED_TEMPLATES else "of checkpoint.chat_template"
            raise CheckpointError(
                f"The chat template {named} writes a {token}, and the tokenizer in {path} has "
                "none. Choose another template."
            )
    return tokenizer


def _template_text(chosen: str) -> str:
    """Return the text of a chosen template. Raises ``ConfigError`` for a name that nobody knows."""
    if is_template_text(chosen):
        return chosen
    if chosen not in NAMED_TEMPLATES:
        raise ConfigError(
            f"There is no chat template named `{chosen}`. Known names: {', '.join(TEMPLATE_NAMES)}."
        )
    return NAMED_TEMPLATES[chosen]


def _fast_tokenizer(path: Path, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (
        Exception
    ) as error:  # transformers raises many kinds here: OSError, ValueError, KeyError, tokenizers' own
        raise CheckpointError(
            f"The tokenizer in {path} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:600]}. Save "
            "it again with transformers' save_pretrained, or name another one (checkpoint.tokenizer)."
        ) from error
    if not tokenizer.is_fast:
        raise CheckpointError(
            f'The tokenizer in {path} is not a "fast" one (tokenizer.json), which is needed to tell an '
            "answer's tokens from its prompt's. Convert it and save it with the checkpoint."
        )
    return tokenizer


def _begin_with_bos(tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """Have the tokenizer's templates write its bos token first, each that does not do so anyway.

    OLMo's first tokenizer (GPT-NeoX's) has none: its eos token serves, as in open-instruct.
    """
    if tokenizer.bos_token is None and "GPTNeoX" in type(tokenizer).__name__:
        tokenizer.bos_token = tokenizer.eos_token
    bos = tokenizer.bos_token
    if bos is None:
        raise CheckpointError(
            f"checkpoint.add_bos is set, and the tokenizer in {path} has no bos token. Leave add_bos out, or "
            "take another tokenizer."
        )
    texts = tokenizer.chat_template
    begun = {
        name: text if _writes_first(bos, text, tokenizer) else _with_bos(text)
        for name, text in (texts if isinstance(texts, dict) else {"": texts}).items()
    }
    tokenizer.chat_template = begun if isinstance(texts, dict) else begun[""]


def _writes_first(bos: str, template: str, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Tell whether a conversation rendered with ``template`` begins with the text ``bos``."""
    if template.startswith((BOS, bos)):
        return True
    own = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
        text = Renderer(tokenizer).render([turns], [None])[0]
    finally:
        tokenizer.chat_template = own
    return isinstance(text, str) and text.startswith(bos)


def _with_bos(template: str) -> str:
    """Put the bos token first. Blanks that a template opens with are taken away in front of a block, and must stay at a
    line's start for that."""
    return BOS + ("{% if true %}{% endif %}\n" if template[:1].isspace() else "") + template
