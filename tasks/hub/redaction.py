"""Secrets cut out of texts that are shown."""


def redacted(text: str, secret: str | None) -> str:
    """Return ``text`` without the secret, wherever it comes from."""
    return text.replace(secret, "<token>") if secret else text
