"""A multiple-choice set out of the Zen of Python, which the module ``this`` holds and prints when it is imported."""

import codecs
import contextlib
import importlib
import io

import datasets

NUM_CHOICES = 4


def documents(**_: object) -> dict[str, datasets.Dataset]:
    """Return the set: a line's first half, and four second halves, one of them its own."""
    with contextlib.redirect_stdout(io.StringIO()):
        text = codecs.decode(importlib.import_module("this").s, "rot13")
    halves = [_halves(line) for line in text.splitlines()[2:] if len(line.split()) >= 4]
    rows = []
    for place, (beginning, _) in enumerate(halves):
        label = place % NUM_CHOICES
        choices = [halves[(place + 3 * (number - label)) % len(halves)][1] for number in range(NUM_CHOICES)]
        rows.append({"beginning": beginning, "choices": choices, "label": label})
    return {"test": datasets.Dataset.from_list(rows)}


def _halves(line: str) -> tuple[str, str]:
    words = line.split()
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])
