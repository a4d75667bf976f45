"""The Hub token: from a Prefect Secret block by name, or from the environment. It leaves the process only as a header.

Nobody passes it on as a parameter: Prefect stores those in plain text. It is loaded where it is used.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any, cast

from huggingface_hub import get_token
from prefect.blocks.system import Secret

from dpo_core.contract.errors import ConfigError
from tasks.hub.redaction import redacted


def load_token(block_name: str | None) -> str | None:
    """Return the token, or None where none is set. Raises ``ConfigError`` if the named block does not exist or is
    empty.
    """
    if block_name is None:
        return os.environ.get("HF_TOKEN") or get_token()
    return load_secret(block_name, "upload.token_block", "HF_TOKEN")


def load_secret(block_name: str, setting: str, variable: str) -> str:
    """Return the text in a Prefect Secret block that ``setting`` names; ``variable`` is what could be set instead.
    Raises ``ConfigError``."""
    value = block_value(block_name, setting, f"set {variable}")
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"The Prefect Secret block `{block_name}` holds no text; store the token in it.")
    return value.strip()


def block_value(block_name: str, setting: str, instead: str) -> object:
    """Return what a Prefect Secret block that ``setting`` names holds: a text, or what its JSON says. ``instead``: what
    to do where the setting is left empty. Raises ``ConfigError`` if there is no such block."""
    try:
        return cast(Secret, Secret.load(block_name)).get()
    except ValueError:
        raise ConfigError(
            f"{setting} names `{block_name}`, but there is no such Prefect Secret block. Create it in the UI "
            f"(Blocks, Secret), or leave {setting} empty and {instead}."
        ) from None


@contextlib.contextmanager
def hidden_in_logs(token: str | None) -> Iterator[None]:
    """Cut the token out of every log record made inside the block, whichever library writes it: at debug level HTTP
    clients repeat what a server sends back."""
    before = logging.getLogRecordFactory()

    def without_token(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        text = record.getMessage() if token else ""
        if (clean := redacted(text, token)) != text:
            record.msg, record.args = clean, ()
        return record

    logging.setLogRecordFactory(without_token)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)
