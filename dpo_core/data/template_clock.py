"""The day that a chat template writes (``strftime_now``): one for all renderings of a job, so that the two sides of a
pair, or two runs of one job, do not differ by midnight."""

import contextlib
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time
from typing import Any

CLOCK = "strftime_now"


def clock(template: str, day: date | None) -> dict[str, Any]:
    """Return the function under the name by which a template asks for the date; it gives ``day``, or this one for None.
    Empty for a template that does not ask."""
    if CLOCK not in template:
        return {}
    return {CLOCK: datetime.combine(day or date.today(), time()).strftime}


@contextlib.contextmanager
def in_library(texts: Iterable[str], names: dict[str, Any]) -> Iterator[None]:
    """Have transformers' own compiled templates of ``texts`` use the clock, which it lets nobody hand over: functions
    among a template's arguments become text."""
    if not names:
        yield
        return
    try:
        from transformers.utils.chat_template_utils import _compile_jinja_template
    except ImportError:  # a version that compiles elsewhere writes today's date, as Renderer warns
        yield
        return
    of_templates = [_compile_jinja_template(text).globals for text in texts]
    for of_template in of_templates:
        of_template.update(names)
    try:
        yield
    finally:
        for of_template in of_templates:
            for name in names:
                of_template.pop(name, None)  # what all templates share stands behind it
