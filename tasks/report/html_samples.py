"""Samples in HTML: what changed between the answers is marked, and a reader chooses which kind is shown. By style alone, as
the page runs no script; a browser that does not know ``:has`` shows those that tell most."""

import hashlib

from dpo_core.contract.word_count import words_of
from tasks.report.blocks import Sample, Samples
from tasks.report.word_diff import Run, word_diff
from tasks.text.escape import html_text

EMPTY = '<em class="muted">(empty)</em>'
VERDICTS: dict[bool | None, tuple[str, str]] = {
    True: ("✓ keeps its instruction", "good"),
    False: ("✗ breaks its instruction", "bad"),
}
TELLING, ALL = "telling", "all"
FILTERS = {
    TELLING: "those that tell most",
    "lost": "instruction no longer kept",
    "gained": "kept only now",
    "longer": "longer now",
    "shorter": "shorter now",
    "same": "the same answer",
    ALL: "all",
}
FILTER_STYLE = ".sample.more{display:none}" + "".join(
    f'.samples:has(input[value="{name}"]:checked) .sample{{display:none}}'
    f'.samples:has(input[value="{name}"]:checked) .sample.{name}{{display:block}}'
    for name in FILTERS
)


def render_samples(block: Samples) -> str:
    """Return the samples and the choice between their kinds, where there is one."""
    kinds = [kinds_of(sample) for sample in block.samples]
    counts = {name: sum(name in of_one for of_one in kinds) for name in FILTERS}
    if counts[TELLING] == counts[ALL]:
        del counts[TELLING]
    offered = {name: count for name, count in counts.items() if count}
    first = TELLING if TELLING in offered else ALL
    # Choices of one name exclude each other; another block on the page has its own.
    group = hashlib.sha256(repr(block.samples).encode()).hexdigest()[:12]
    choice = "".join(
        f'<label><input type="radio" name="{group}" value="{name}"{" checked" if name == first else ""}> '
        f"{FILTERS[name]} ({count:,})</label>"
        for name, count in offered.items()
    )
    shown = "".join(_sample(sample, of_one) for sample, of_one in zip(block.samples, kinds, strict=True))
    filters = f'<div class="filter" role="group" aria-label="Samples shown">{choice}</div>'
    return f'<div class="samples">{filters if len(offered) > 1 else ""}{shown}</div>'


def kinds_of(sample: Sample) -> tuple[str, ...]:
    """Return the filters that show a sample."""
    longer = len(words_of(sample.after)) - len(words_of(sample.before))
    applies = {
        TELLING: sample.is_telling,
        "lost": bool(sample.before_passes) and sample.after_passes is False,
        "gained": sample.before_passes is False and bool(sample.after_passes),
        "longer": longer > 0,
        "shorter": longer < 0,
        "same": sample.before == sample.after,
        ALL: True,
    }
    return tuple(name for name in FILTERS if applies[name])


def _sample(sample: Sample, kinds: tuple[str, ...]) -> str:
    before, after = word_diff(sample.before, sample.after)
    more = "" if sample.is_telling else "more "
    return (
        f'<article class="sample {more}{" ".join(kinds)}">'
        f'<div class="prompt"><span class="who">prompt</span>{html_text(sample.prompt)}</div>'
        f'<div class="answers">{_answer("before", before, "del", sample.before_passes)}'
        f"{_answer('after', after, 'ins', sample.after_passes)}</div></article>"
    )


def _answer(who: str, runs: list[Run], tag: str, passes: bool | None) -> str:
    word, tone = VERDICTS.get(passes, ("", ""))
    verdict = f' · <span class="{tone}">{word}</span>' if word else ""
    text = "".join(
        f"<{tag}>{html_text(text)}</{tag}>" if marked else html_text(text) for text, marked in runs
    )
    return f'<div><span class="who">{who}{verdict}</span>{text or EMPTY}</div>'
