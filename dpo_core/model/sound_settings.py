"""Settings for generating that transformers reads and writes as they are, and that whoever generates with them refuses.

vLLM and ``generate`` look at a value when it is used: ``temperature: -1``, ``top_p: 0`` or ``"0.7"`` end the first request
of an RLVR run, an id beyond the vocabulary its first batch. What can be meant is put right, what cannot is left out: nobody
has generated with it. The bounds are those of vLLM's SamplingParams and of transformers' logits processors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ANY = math.inf
MOST = 2**31 - 1  # of a count


@dataclass(frozen=True, slots=True)
class _Number:
    """From ``least`` to ``most``; with ``above`` not ``least`` itself."""

    least: float
    most: float = ANY
    above: bool = False
    is_count: bool = False

    def __call__(self, value: Any) -> Any:
        number = float(value) if type(value) in (int, float, str) else math.nan
        if not math.isfinite(number) or (self.is_count and number != int(number)):
            raise ValueError
        if not self.least <= number <= self.most or (self.above and number == self.least):
            raise ValueError
        return int(number) if self.is_count else value if type(value) in (int, float) else number


@dataclass(frozen=True, slots=True)
class _Ids:
    """Tokens of the vocabulary: one, or a list of them."""

    num_tokens: int

    def __call__(self, value: Any) -> Any:
        ids = value if isinstance(value, list | tuple) else [value]
        kept = [one for one in ids if type(one) is int and 0 <= one < self.num_tokens]
        if not kept:
            raise ValueError
        return value if len(kept) == len(ids) else kept


def _flag(value: Any) -> bool:
    texts = {"true": True, "false": False}
    if isinstance(value, str):
        return texts[value.strip().lower()]
    if type(value) not in (bool, int) or value not in (0, 1):
        raise ValueError
    return bool(value)


def _top_k(value: Any) -> int:
    number: int = _Number(-1, MOST, is_count=True)(value)
    return max(number, 0)  # vLLM writes -1, and transformers 0, for no bound


def _texts(value: Any) -> Any:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError
    return value


def _penalty_from(value: Any) -> Any:
    start, factor = value  # from which token on, and how much
    return [_Number(0, MOST, is_count=True)(start), _Number(-ANY)(factor)]


SAMPLING = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
_SHARE, _SHARE_OR_NONE = _Number(0, 1, above=True), _Number(0, 1)
_POSITIVE, _COUNT = _Number(0, above=True), _Number(0, MOST, is_count=True)
_AT_LEAST_ONE = _Number(1, MOST, is_count=True)
_OTHERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values"), _flag),
    **dict.fromkeys(("top_p", "typical_p", "top_h"), _SHARE),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff"), _SHARE_OR_NONE),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "max_time"), _POSITIVE),
    **dict.fromkeys(("temperature", "diversity_penalty", "penalty_alpha"), _Number(0)),
    **dict.fromkeys(("length_penalty", "guidance_scale"), _Number(-ANY)),
    **dict.fromkeys(("max_new_tokens", "max_length", "num_beams", "num_beam_groups"), _AT_LEAST_ONE),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size"), _COUNT),
    "num_return_sequences": _AT_LEAST_ONE,
    "encoder_no_repeat_ngram_size": _COUNT,
    "top_k": _top_k,
    "stop_strings": _texts,
    "exponential_decay_length_penalty": _penalty_from,
}
_IDS = (
    *("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
)


def sound_settings(settings: dict[str, Any], num_tokens: int) -> tuple[dict[str, Any], list[str]]:
    """Return settings that can be generated with, and what was changed, in words. ``num_tokens``: ids that there are."""
    rules: dict[str, Callable[[Any], Any]] = {**_OTHERS, **dict.fromkeys(_IDS, _Ids(num_tokens))}
    kept: dict[str, Any] = {}
    said: list[str] = []
    for name, value in settings.items():
        if value is None or name not in rules:
            kept[name] = value
            continue
        try:
            kept[name] = rules[name](value)
        except (ValueError, TypeError, KeyError, OverflowError):
            said.append(f"{name} {value!r} is left out")
            continue
        if kept[name] != value or isinstance(kept[name], bool) != isinstance(value, bool):
            said.append(f"{name} {value!r} becomes {kept[name]!r}")
    if kept.get("temperature") == 0:
        kept = {name: value for name, value in kept.items() if name not in SAMPLING}
        said.append("temperature 0 is greedy, and nothing is drawn")
    return kept, said
