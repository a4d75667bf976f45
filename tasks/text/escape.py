"""Text that others wrote, for each place that would act on it: Markdown, HTML, YAML, a shell. One function a place.

Nothing else in ``flows`` or ``tasks`` escapes (tests/test_architecture.py); for terminals see ``tasks/text/terminal.py``.
What steers or hides wherever it is shown becomes visible here, too (``dpo_core/contract/visible.py``).
"""

import html
import re
import shlex
from collections.abc import Iterable, Sequence
from urllib.parse import quote

import yaml

from dpo_core.contract.visible import one_line, visible

# What Markdown or HTML would act on: a prompt must not become a link, a picture, or a script. Prefect's first UI shows
# numeric entities as they are written; backslashes and these three names both of its UIs understand.
ACTIVE = {
    **{ord(letter): f"\\{letter}" for letter in "\\|`*[]!#~$"},
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
}
EMPHASIS = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # inside a word it is none: held_out
ADDRESS = re.compile(
    r"\b(?:(https?|ftp)(?=://)|(www)(?=\.))(.)", re.IGNORECASE
)  # GitHub's Markdown makes links of them
LIST = re.compile(
    r"^(?:(?=[-+]\s)|(?=-\s*-\s*-[-\s]*$)|(\d{1,9})(?=[.)]\s))"
)  # or a rule, at the beginning of a paragraph
OF_AN_ADDRESS = "/:?#@!$&'*+,;=%~[]-._"


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is, on one line: a paragraph, a part of one, or the cell of a table."""
    shown = visible(text).strip(" \t\n").translate(ACTIVE)
    shown = ADDRESS.sub(r"\1\2\\\3", EMPHASIS.sub(r"\\_", shown))
    return LIST.sub(r"\1\\", shown).replace("\n", "<br>")


def markdown_code(text: str) -> str:
    """Return the same in the type of code. Not for cells of tables."""
    shown = one_line(text)
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    room = " " if not shown or shown[0] in "` " or shown[-1] in "` " else ""
    return f"{ticks}{room}{shown}{room}{ticks}"


def markdown_block(text: str) -> str:
    """Return a block of code; its fence is longer than any in the text."""
    shown, fence = visible(text), "```"
    while fence in shown:
        fence += "`"
    return f"{fence}\n{shown}\n{fence}"


def markdown_link(text: str, address: str) -> str:
    """Return a link, if the address is one of the web; else the text alone."""
    if not re.match(r"https?://", address):
        return markdown_text(text)
    return f"[{markdown_text(text)}]({quote(visible(address), safe=OF_AN_ADDRESS)})"


def html_text(text: str) -> str:
    """Return text of an element or of a quoted attribute, of SVG, too."""
    return html.escape(visible(text))


def yaml_text(text: str) -> str:
    """Return a quoted scalar on one line."""
    return yaml.safe_dump(visible(text), default_style='"', allow_unicode=True, width=float("inf")).rstrip(
        "\n"
    )


def shell_word(text: str) -> str:
    """Return one word of a command that a person will copy. Control characters are spelled out as bash, zsh and ksh
    read them: a terminal would act on them when they are shown, and again when they are pasted."""
    if one_line(text) == text:
        return shlex.quote(text)
    return "$'" + "".join(_in_dollar_quotes(letter) for letter in text) + "'"


def _in_dollar_quotes(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if letter.isascii() and letter.isprintable():
        return letter
    is_byte = "\udc80" <= letter <= "\udcff"  # of a file's name that is no UTF-8
    return "".join(
        f"\\{byte:03o}" for byte in letter.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    )


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a GitHub table of cells that are Markdown already."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))
