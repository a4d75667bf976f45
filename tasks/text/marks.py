"""How trained and untrained tokens are told apart where there are no colours."""

MARKS = {"prompt": ("", ""), "trained": ("[[", "]]"), "untrained": ("((", "))")}


def marked(kind: str, text: str) -> str:
    """Put a text of a kind between its marks."""
    before, after = MARKS[kind]
    return f"{before}{text}{after}"
