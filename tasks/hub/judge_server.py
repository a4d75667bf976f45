"""A judge's endpoint, asked one question before anything is trained: it answers, takes the key, and knows the model."""

import os
from typing import Any
from urllib.parse import urlsplit

import httpx

from dpo_core.contract.errors import ConfigError, RemoteError
from dpo_core.contract.judge_config import (
    JUDGE_KEY,
    NO_KEY,
    PLACES,
    QUESTION,
    WORTH_ANOTHER_TRY,
    JudgeConfig,
    advice_on_refusal,
)
from dpo_core.contract.judge_job import JudgeJob
from tasks.hub.redaction import redacted
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import kind_of
from tasks.launch.launchers import LauncherSections

EXAMPLE = dict(zip(PLACES, ("What is two and two?", "Four.", "Five."), strict=True))
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def ask_endpoint(config: JudgeConfig, key: str | None) -> None:
    """Put one question as the step ``judge`` will. Raises ``ConfigError`` for what the server refuses, ``RemoteError`` where
    it does not answer or answers with something else; neither holds the key."""
    where = f"The judge {config.model} at {config.endpoint}"
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"The key of the judge {config.model} holds a line end or another character that no request can carry.",
            f"Set {JUDGE_KEY}, or the block that judge.key_block names, to the key alone.",
        )
    try:
        reply = httpx.post(
            f"{config.endpoint}/chat/completions",
            json=_question(config),
            headers={"Authorization": f"Bearer {key or NO_KEY}"},
            timeout=config.timeout_seconds,
            follow_redirects=True,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = redacted(f"{type(error).__name__}: {error}", key)
        raise RemoteError(
            f"{where} does not answer: {said[:300]}",
            "It is asked once before anything is trained. Start it, look at judge.endpoint, or leave the judge out.",
        ) from None
    status, said = reply.status_code, " ".join(redacted(reply.text, key).split())[:300]
    if status in WORTH_ANOTHER_TRY and status < 500:
        return  # it is there, knows us, and is busy: the step waits for it
    if status >= 500:
        raise RemoteError(f"{where} answers with {status}: {said}", "It is asked before anything is trained.")
    if status >= 400:
        problem = f"{where} refuses a question with {status}, asked before anything is trained: {said}"
        raise ConfigError(problem, advice_on_refusal(status))
    if not _is_completion(reply):
        raise RemoteError(
            f"{where} answers with no chat completion: {said}",
            "Look at judge.endpoint, which is the base URL (http://host/v1) of a server of OpenAI's chat completions.",
        )


def lacks_a_key(config: JudgeConfig) -> bool:
    """Return whether an endpoint on another machine is to be asked with no key at all, as far as this environment says."""
    return (
        not is_on_loopback(config) and config.key_block is None and not os.environ.get(JUDGE_KEY, "").strip()
    )


def how_judged(config: JudgeConfig, compute: ComputeConfig, sections: LauncherSections) -> str:
    """Return what a plan says of the judge: who it is, and whether an endpoint is asked before anything is trained."""
    if config.kind != "endpoint":
        return config.in_words
    reached = kind_of(compute).is_reached_from_here(sections, JudgeJob.step)
    when = "before the first step, too" if reached else "from the step's own network alone"
    key = f"; without a key, as {JUDGE_KEY} is not set" if lacks_a_key(config) else ""
    return f"{config.in_words}; asked {when}{key}"


def is_on_loopback(config: JudgeConfig) -> bool:
    """Return whether the endpoint is one of the machine that asks it."""
    return urlsplit(config.endpoint).hostname in LOOPBACK


def _question(config: JudgeConfig) -> dict[str, Any]:
    """The body of the request, as the step has it; null leaves a parameter out."""
    question = config.question or QUESTION
    for place, text in EXAMPLE.items():
        question = question.replace(place, text)
    body: dict[str, Any] = {
        "model": config.model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": config.max_new_tokens,
        "temperature": 0.0,
    }
    return {name: value for name, value in (body | dict(config.parameters)).items() if value is not None}


def _is_completion(reply: httpx.Response) -> bool:
    try:
        text = reply.json()["choices"][0]["message"].get("content")
    except (ValueError, TypeError, AttributeError, IndexError, KeyError):
        return False
    return text is None or isinstance(text, str)
