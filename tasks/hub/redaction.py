"""Secrets cut out of texts that are shown."""


def redacted(text: str, secret: str | None) -> str:
    """Return ``text`` without the secret, wherever it comes from, also as Python writes it in a message."""
    for form in (secret, repr(secret)[1:-1]) if secret else ():
        text = text.replace(form, "<token>")
    return text
