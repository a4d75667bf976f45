"""Limits for the code that comes with a checkpoint as its chat template: processor time, memory and length of a rendering.

A template is a program: nested loops take for ever, ``7 ** 9999999`` takes 41 s, ``'a' * 4e9`` takes 4 GB. What it may do is
the sandbox's to say (jinja2); how long it may do it is said here. Neither costs an ordinary row anything: a timer of the
process's own time and a limit of its memory are set for a batch of rows, and a row is told by a number. Processor time, not
the clock's, so that a machine that sleeps or is busy drops no row. What is computed inside the interpreter (large powers,
regular expressions) looks at the timer, too.
"""

import contextlib
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dpo_core.contract.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TICK_SECONDS = (
    1.0  # of processor time; a rendering that sees two ticks is over, so it has between one and two seconds
)
MAX_MEMORY_BYTES = 512 << 20  # beyond what the process holds when the batch begins
MAX_TEXT_CHARACTERS = 16 << 20  # about four million tokens
SHORT_CHARACTERS = 100_000  # texts of a whole batch, which need not be added up
MAX_SENTENCE_CHARACTERS = 300
MAX_ROWS_OVER = 32  # a template that takes so long on so many rows would take days on all
Result = TypeVar("Result")
PAGE_BYTES = resource.getpagesize()


class Over(Enum):
    """In place of a text: the rendering went over its limits."""

    LIMITS = "over_limits"


@dataclass(frozen=True, slots=True)
class Refused:
    """In place of a text: the template refuses the conversation, for the reason that it gives."""

    sentence: str

    @classmethod
    def by(cls, error: Exception) -> "Refused":
        """Return what a template raised: by ``raise_exception`` its own sentence, else an error of its code."""
        words = " ".join(str(error).split()) or "no reason given"
        own = type(error).__name__ == "TemplateError"
        return cls((words if own else f"{type(error).__name__}: {words}")[:MAX_SENTENCE_CHARACTERS])


Rendered = str | Over | Refused


class TimeIsUp(BaseException):
    """No ``Exception``, since templates' callers catch those: it would pass for a template's own refusal."""


class RenderLimits:
    """Renders texts within limits. One batch at a time, in the process's main thread; elsewhere there is no timer.

    ``number`` goes up by one when a rendering begins, and again when it ends: it is odd in between.
    """

    def __init__(self) -> None:
        self.num_over = self._characters_made = 0
        self.number = self._number_at_tick = 0
        self._set = False

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Set the limits for the renderings inside the block; within another batch, that one's hold."""
        if self._set:
            yield
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        timed = threading.current_thread() is threading.main_thread()
        before: Any = signal.signal(signal.SIGPROF, self._tick) if timed else None
        self._set = True
        try:
            self._limit_memory()
            if timed:
                signal.setitimer(signal.ITIMER_PROF, TICK_SECONDS, TICK_SECONDS)
            yield
        finally:
            if timed:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.signal(signal.SIGPROF, before)
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            self._set = False

    def _limit_memory(self) -> None:
        """Beyond what is held now, the texts of the batch included."""
        self._characters_made = 0
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        ceiling = _memory_in_use() + MAX_MEMORY_BYTES
        if ceiling > MAX_MEMORY_BYTES and (hard == resource.RLIM_INFINITY or ceiling < hard):
            resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))

    def _tick(self, *_: object) -> None:
        if self.number % 2 and self.number == self._number_at_tick:
            raise TimeIsUp
        self._number_at_tick = self.number

    def run(self, call: Callable[..., Result], *arguments: Any) -> Result | Over:
        """Return ``call(*arguments)`` inside a batch. What it raises is passed on."""
        self.number += 1
        try:
            return call(*arguments)
        except (TimeIsUp, MemoryError):
            return Over.LIMITS
        finally:
            self.number += 1

    def render(self, rendering: Callable[..., str], *arguments: Any) -> str | Over:
        """Return the text that ``rendering(*arguments)`` gives inside a batch. What it raises is passed on.

        Raises ``CheckpointError`` when too many renderings went over their limits.
        """
        text = self.run(rendering, *arguments)
        return self.over() if isinstance(text, Over) else self.admitted(text)

    def admitted(self, text: str) -> str | Over:
        """Return a rendered text, if it is not too long."""
        if len(text) > MAX_TEXT_CHARACTERS:
            return self.over()
        self._characters_made += len(text)
        if self._characters_made > MAX_TEXT_CHARACTERS:
            self._limit_memory()
        return text

    def over(self) -> Over:
        """Count a rendering that went over its limits."""
        self.num_over += 1
        if self.num_over > MAX_ROWS_OVER:
            raise CheckpointError(
                f"The chat template went over its limits on more than {MAX_ROWS_OVER} rows: {LIMITS}. "
                "Choose another one (checkpoint.chat_template)."
            )
        return Over.LIMITS


LIMITS = (
    f"a rendering has {2 * TICK_SECONDS:.0f} s of processor time, {MAX_MEMORY_BYTES >> 20} MiB and "
    f"{MAX_TEXT_CHARACTERS} characters"
)


def rendered_by_library(tokenizer: "PreTrainedTokenizerBase", messages: list[dict], **settings: Any) -> str:
    """Return one conversation's text within limits, by transformers' ``apply_chat_template`` with its ``settings``.

    What that raises is passed on; ``CheckpointError`` for a template that goes over the limits.
    """
    limits = RenderLimits()
    with limits.batch():
        text = limits.render(
            lambda: cast(str, tokenizer.apply_chat_template(messages, tokenize=False, **settings))
        )
    if isinstance(text, Over):
        raise CheckpointError(
            f"The checkpoint's chat template goes over its limits: {LIMITS}. Choose another one "
            "(checkpoint.chat_template), or do not use this checkpoint."
        )
    return text


def _memory_in_use() -> int:
    """Bytes of address space; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_BYTES
    return 0
