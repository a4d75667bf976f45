"""A model behind an OpenAI-compatible server as the judge: it is asked which of two answers is better, in both orders.

Models prefer what stands first, or second, whatever it says (Zheng et al. 2023, arXiv 2306.05685), so each pair is asked
about twice, with the answers exchanged. The preference is the mean of both verdicts; where they contradict each other, one
half. Requests go through the client of huggingface_hub, which every environment of the trainer has.
"""

import contextlib
import logging
import os
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import HTTPError  # the root of whichever httpx the library is built on

from dpo_core.contract.errors import ConfigError, PairlineError, RemoteError
from dpo_core.contract.jobs import AnswerPair
from dpo_core.contract.judge_config import (
    JUDGE_KEY,
    JUDGE_KEY_FILE,
    NO_KEY,
    PLACES,
    WORTH_ANOTHER_TRY,
    advice_on_refusal,
)
from dpo_core.contract.judge_job import EndpointJudge
from dpo_core.contract.judgement import Opinion, Preferred
from dpo_core.contract.store import fingerprint
from dpo_core.judging.judge import Session
from dpo_core.judging.kept import KeptWords

log = logging.getLogger(__name__)
LONGEST_WAIT_SECONDS, MOST_ASKED_FOR_SECONDS = 60.0, 600.0
VERDICT = re.compile(r"(?i:verdict)\W{0,10}(A|B|(?i:tie))[^\w\n]*$", re.MULTILINE)
LETTER_ALONE = re.compile(r"\W*(A|B|(?i:tie))\W*")
VALUES: dict[Preferred, float] = {"before": 0.0, "tie": 0.5, "after": 1.0}


class NoCompletion(ValueError):
    """A server answered with 200 and something that is no chat completion."""


def key_of_endpoint() -> str | None:
    """Return the key that the step was given, in the environment or in a file."""
    file = Path(os.environ.get(JUDGE_KEY_FILE, ""))
    key = file.read_text() if file.is_file() else os.environ.get(JUDGE_KEY, "")
    return key.strip() or None  # with the end of a line behind it no header could hold it


class Endpoint:
    """See ``Judge``. ``key``: leaves the process as a header, and stands in no message."""

    def __init__(
        self,
        settings: EndpointJudge,
        kept: KeptWords,
        key: str | None = None,
        on_replies: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.settings, self.kept, self.key, self.on_replies = settings, kept, key, on_replies
        self._stop = threading.Event()
        self._client = InferenceClient(
            base_url=f"{settings.url}/chat/completions",
            api_key=key or NO_KEY,
            timeout=settings.timeout_seconds,
        )

    def judge(self, answers: Sequence[AnswerPair]) -> Session:
        """Ask what was not asked before. Raises ``ConfigError`` for what the server refuses, ``RemoteError`` if it does not
        answer."""
        orders = [self._orders(pair) for pair in answers]
        questions = {
            fingerprint(question): question for both in orders for question in both
        }  # equal ones are asked once
        missing = {key: question for key, question in questions.items() if key not in self.kept}
        self.on_replies(2 * len(answers) - len(missing))
        self._ask(missing)
        replies = {key: self.kept[key] for key in questions}
        said = [[str(replies[fingerprint(question)]["text"]) for question in both] for both in orders]
        return Session(
            opinions=tuple(opinion_of(words) if words else SAME for words in said),
            said=tuple(said),
            asked=len(missing),
            prompt_tokens=sum(reply["prompt_tokens"] for reply in replies.values()),
            completion_tokens=sum(reply["completion_tokens"] for reply in replies.values()),
        )

    def _orders(self, pair: AnswerPair) -> list[str]:
        """Both questions about a pair; none about answers that are the same."""
        if pair.before == pair.after:
            return []
        sides = ((pair.before, pair.after), (pair.after, pair.before))
        return [asked(self.settings.question, pair.prompt, first, second) for first, second in sides]

    def _ask(self, missing: dict[str, str]) -> None:
        """Ask several at once, and keep each reply as it comes."""
        with _though_the_hub_is_off(), ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = [pool.submit(self._ask_one, key, question) for key, question in missing.items()]
            try:
                for future in as_completed(futures):
                    future.result()
                    self.on_replies(1)
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)  # what is under way is waited for, and kept
                raise

    def _ask_one(self, key: str, question: str) -> None:
        if self._stop.is_set():  # another question failed, which ends the step
            return
        try:
            self.kept.put({key: self._reply(question)})
        except BaseException:
            self._stop.set()
            raise

    def _reply(self, question: str) -> dict[str, Any]:
        """Put one question until it is answered, or as often as the settings say."""
        failure: PairlineError | None = None
        for attempt in range(self.settings.retries + 1):
            try:
                reply = self._completion(question)
                if reply["text"].strip() or attempt >= min(1, self.settings.retries):
                    return reply
                continue  # nothing said may be a server's hiccup, once
            except (HTTPError, NoCompletion) as error:
                failure, wait = self._failure(error), self._wait(error, attempt)
            if not isinstance(failure, RemoteError) or attempt == self.settings.retries:
                break
            if self._stop.wait(wait):
                break
        assert failure is not None
        raise failure

    def _completion(self, question: str) -> dict[str, Any]:
        settings = self.settings
        try:
            found = self._client.chat_completion(
                [{"role": "user", "content": question}],
                model=settings.model,
                max_tokens=settings.max_new_tokens,
                temperature=0.0,
                extra_body=dict(settings.parameters),
            )
            text: object = found.choices[0].message.content
        except HTTPError:  # some of which are a ValueError, too
            raise
        except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            raise NoCompletion(f"no chat completion ({type(error).__name__})") from error
        if text is not None and not isinstance(text, str):
            raise NoCompletion("no chat completion (its content is no text)")
        tokens = {name: getattr(found.usage, name, None) for name in ("prompt_tokens", "completion_tokens")}
        return {"text": text or ""} | {
            name: count if isinstance(count, int) else 0 for name, count in tokens.items()
        }

    def _failure(self, error: Exception) -> PairlineError:
        """What is worth another try is a ``RemoteError``. No message holds the key, whatever a server repeats."""
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        text = _body_of(response) or str(error)
        text = " ".join(_without(self.key, text).split())[:300]
        where = f"The judge {self.settings.model} at {self.settings.url}"
        if status is None or status >= 500 or status in WORTH_ANOTHER_TRY:
            reason = f"answers with {status}" if status else "does not answer"
            return RemoteError(
                f"{where} {reason}, asked {self.settings.retries + 1} times: {text}",
                "What it said so far is kept; start again, and the rest is asked.",
            )
        return ConfigError(f"{where} refuses the question with {status}: {text}", advice_on_refusal(status))

    def _wait(self, error: Exception, attempt: int) -> float:
        """Seconds: what the server asks for, else twice as long as before, half of it by chance."""
        headers = getattr(getattr(error, "response", None), "headers", None) or {}
        with contextlib.suppress(ValueError):
            return min(max(0.0, float(headers.get("Retry-After", ""))), MOST_ASKED_FOR_SECONDS)
        return min(2.0**attempt, LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1.0)


def asked(question: str, prompt: str, first: str, second: str) -> str:
    """Return the question about two answers; a text that holds the name of a place stays as it is."""
    texts = dict(zip(PLACES, (prompt, first, second), strict=True))
    return re.sub("|".join(map(re.escape, PLACES)), lambda place: texts[place[0]], question)


def verdict_of(reply: str) -> str | None:
    """Return "A", "B" or "tie", the last that the reply gives as its verdict; None if it gives none."""
    verdicts = VERDICT.findall(reply)
    alone = LETTER_ALONE.fullmatch(reply)
    found = verdicts[-1] if verdicts else alone[1] if alone else None
    return found.lower() if found and found not in ("A", "B") else found


def opinion_of(replies: Sequence[str]) -> Opinion:
    """Return the opinion of the replies in both orders: first the SFT model's answer is A, then the trained one's."""
    names: tuple[dict[str | None, Preferred], ...] = (
        {"A": "before", "B": "after", "tie": "tie"},
        {"A": "after", "B": "before", "tie": "tie"},
    )
    orders = tuple(of.get(verdict_of(reply)) for of, reply in zip(names, replies, strict=True))
    read = [VALUES[order] for order in orders if order is not None]
    return Opinion(preference=sum(read) / 2 if len(read) == 2 else None, orders=orders)


SAME = Opinion(
    preference=0.5, orders=("tie", "tie")
)  # of answers that are the same, which nobody is asked about


def _without(key: str | None, text: str) -> str:
    """The text without the key, also as Python writes it in a message."""
    for form in (key, repr(key)[1:-1]) if key else ():
        text = text.replace(form, "<key>")
    return text


def _body_of(response: Any) -> str:
    """What a server said of an error; empty where its answer was not read."""
    with contextlib.suppress(RuntimeError, ValueError):
        return str(getattr(response, "text", "") or "")
    return ""


@contextlib.contextmanager
def _though_the_hub_is_off() -> Iterator[None]:
    """The client is the Hub's, and refuses every server where HF_HUB_OFFLINE is set. A judge is not the Hub."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
