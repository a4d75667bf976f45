"""Which ids a tokenizer's files give to words and to the tokens that end, begin and pad a text. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_core.contract.errors import CheckpointError
from tasks.checkpoint.own_files import read_json_file

NAMED = ("eos_token", "bos_token", "pad_token")


@dataclass(frozen=True, slots=True)
class TokenIds:
    """``words``: of the vocabulary as it was trained; ``added``: put in later, special ones as a rule; ``named``: eos_token,
    bos_token, pad_token -> id, those that there are."""

    words: dict[str, int]
    added: dict[str, int]
    named: dict[str, int]

    def text_of(self, token_id: int) -> str | None:
        """Return the added token with this id, else the word, else None."""
        of_both = ((text, number) for ids in (self.added, self.words) for text, number in ids.items())
        return next((text for text, number in of_both if number == token_id), None)

    def id_of(self, text: str | None) -> int | None:
        """Return the id of a token by its text."""
        return None if text is None else self.added.get(text, self.words.get(text))


def token_ids(folder: Path, settings: dict[str, Any]) -> TokenIds:
    """Read tokenizer.json in ``folder``; ``settings``: what its tokenizer_config.json holds. Raises ``CheckpointError``."""
    content = read_json_file(folder / "tokenizer.json")
    try:
        added = {token["content"]: int(token["id"]) for token in content.get("added_tokens") or ()}
        words = dict(_words(content["model"]["vocab"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} holds no vocabulary ({type(error).__name__}: {error}). Save the tokenizer again "
            "with save_pretrained."
        ) from error
    words = {text: number for text, number in words.items() if text not in added}
    known = TokenIds(words, added, {})
    special = folder / "special_tokens_map.json"
    texts = (read_json_file(special) if special.is_file() else {}) | settings
    named = {name: number for name in NAMED if (number := known.id_of(_text(texts.get(name)))) is not None}
    return TokenIds(words, added, named)


def _words(vocabulary: Any) -> Iterator[tuple[str, int]]:
    """BPE, word pieces and word levels map words to ids; a unigram vocabulary is a list of word and score."""
    if isinstance(vocabulary, dict):
        yield from ((word, int(number)) for word, number in vocabulary.items())
    else:
        yield from ((entry[0], number) for number, entry in enumerate(vocabulary))


def _text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def agreeing(config: dict[str, Any], ids: TokenIds, own: TokenIds | None) -> dict[str, Any]:
    """Return a config.json or generation_config.json whose eos, bos and pad ids are those of ``ids``.

    An id that it has stays what it was by its text: of ``own``, the tokenizer it was written for, where that is known, else
    an added token of ``ids``. What is no token any more is left out; ``ids`` names the rest.
    """
    changed = dict(config)
    for name in NAMED:
        key, named = f"{name}_id", ids.named.get(name)
        before = [one for one in _ids(config.get(key)) if type(one) is int]
        kept = [new for one in before if (new := _same(one, ids, own)) is not None]
        if name == "eos_token":
            ends = sorted({*kept, *([] if named is None else [named])})
            value: Any = ends if len(ends) > 1 else ends[0] if ends else None
        else:
            value = named if named is not None else kept[0] if kept else None
        is_same = set(_ids(value)) == set(before) and (value is not None or config.get(key) is None)
        if not is_same and (key in config or value is not None):
            changed[key] = value
    if isinstance(config.get("text_config"), dict):
        changed["text_config"] = agreeing(config["text_config"], ids, own)
    return changed


def _ids(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _same(token_id: int, ids: TokenIds, own: TokenIds | None) -> int | None:
    if own is not None:
        return ids.id_of(own.text_of(token_id))
    return token_id if token_id in ids.added.values() else None
