"""Text that attacks whatever shows it, and judges of what came out that know nothing of how it was escaped."""

import os
import re

from hypothesis import settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

EVIL = "http://evil.example"
ATTACKS = (
    # terminals, and what is not seen or reorders what is
    "\x1b[2J\x1b[H",
    "\x1b]52;c;ZXZpbA==\x07",
    f"\x1b]8;;{EVIL}\x1b\\click\x1b]8;;\x1b\\",
    "\x1bP+q\x1b\\",
    "\x9b31m",
    "\x9d0;x\x9c",
    "\x08\x08",
    "good\rbad",
    "\x00",
    "\x7f",
    "\x0c",
    "\x85",
    "\u2028",
    "\u202etxt.exe",
    "\u2066x\u2069",
    "a\u200bb",
    "pay\u200dpal",
    "\ufeff",
    "x\U000e0068\U000e0069",
    "a\u3164b",
    "\u200d\u200c\u200d",
    "\ufe0f\ufe0f",
    "\ufffe",
    "\ud800",
    # HTML
    "<script>alert(1)</script>",
    f"<img src={EVIL}/x.png onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' x='",
    "<!--",
    "-->",
    "</pre></td></title></svg>",
    "<![CDATA[",
    "<?php",
    f"<{EVIL}>",
    "&#27;[2J",
    "&#x202e;",
    "&lt;b&gt;",
    "&amp;",
    "]]>",
    # Markdown
    f"![x]({EVIL}/x.png)",
    "[x](javascript:alert(1))",
    f"[x]: {EVIL}",
    f"![x][x]\n\n[x]: {EVIL}",
    f"{EVIL}/?a_b_c",
    "[^1]",
    "www.evil.example",
    "`",
    "``",
    "```",
    "````",
    "~~~",
    "```mermaid\n",
    "\\",
    "\\\\",
    "\\|",
    "|",
    "| a | b |\n|---|---|\n",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    "    ",
    " ",
    "*",
    "**",
    "_",
    "__a__",
    "~~a~~",
    "# h",
    "- i",
    "1. i",
    "> q",
    "---",
    "\n---\n",
    "===",
    "+ i",
    "* * *",
    "$x$",
    "a_b_c",
    "!",
    "[",
    "](",
    # YAML
    "key: value",
    "- !!python/object/apply:os.system [id]",
    "%YAML",
    "{}",
    "'",
    '"',
    "\n...\n",
    "&anchor",
    "? ",
    ": ",
    " #",
    # shells
    "$(id)",
    "`id`",
    "; rm -rf ~",
    "&& id",
    "$HOME",
    "${IFS}",
    "!!",
    "-rf",
    "--flag",
    "\\\n",
    "$'\\x41'",
    # Rich and formats
    "[/]",
    "[red]",
    "[bold]x[/bold]",
    f"[link={EVIL}]x[/link]",
    "[@click=app.bell]x[/]",
    ":warning:",
    "%s %(x)s",
    "{0}",
    "{x}",
)
ORDINARY = (
    "word",
    "held_out",
    "7B",
    "日本語",
    "葛󠄀",
    "שלום",
    "مرحبا",
    "می‌خواهم",
    "क्‍ष",
    "👩‍💻",
    "❤️‍🔥",
    "1️⃣",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "é",
    "50 %",
    "a-b",
    "-0.2",
    "x.y",
    "/a/b",
    "(c)",
)
LETTERS = st.integers(0, 0x10FFFF).map(chr)  # st.text spends seconds on its table of characters first
TEXTS = st.lists(st.sampled_from(ATTACKS) | st.sampled_from(ORDINARY) | LETTERS, min_size=1, max_size=6).map(
    "".join
)
FEW = settings(
    max_examples=int(os.environ.get("HOSTILE_EXAMPLES", "50")),
    deadline=None,
    derandomize="HOSTILE_EXAMPLES" not in os.environ,
)
EVERYTHING = " ".join(ATTACKS)

CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u202a-\u202e\u2066-\u206f\u200b\u2060-\u2064\ufeff\u00ad\u3164\ufffe\uffff]"
    "|[\ud800-\udfff]|(?:^|[\x00-\x7f\u200c\u200d])[\u200c\u200d]|[\ufe00-\ufe0f]{2}"
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0020-\U000e007f]"
)
MARKDOWN = MarkdownIt("commonmark").enable("table").enable("strikethrough")
MARKDOWN.validateLink = lambda address: True  # not every renderer forbids what this one does
BREAKS = re.compile(r"(?:<br>\s*)+")


def calm(text: str) -> str:
    """``text`` that a terminal only shows, all of it and in its order."""
    found = CONTROLS.findall(text)
    assert not found, f"{found!r} in {text!r}"
    return text


def words(text: str) -> str:
    """Without what is only layout."""
    return " ".join(text.split())


def inline_tokens(markdown: str) -> list[Token]:
    """The parts of every line of text, in order."""
    return [
        part for token in MARKDOWN.parse(markdown) if token.type == "inline" for part in token.children or ()
    ]


def shown(parts: list[Token]) -> str:
    """What a reader sees of them."""
    return "".join(
        "\n" if part.type in ("softbreak", "hardbreak", "html_inline") else part.content for part in parts
    )


def harmless_markdown(markdown: str, links: tuple[str, ...] = (), num_pictures: int = 0) -> str:
    """Markdown that holds no HTML but line breaks, no link but those that begin with ``links``, and no picture but those of
    ours. -> what a reader sees"""
    calm(markdown)
    blocks, parts = MARKDOWN.parse(markdown), inline_tokens(markdown)
    raw = [token.content for token in [*blocks, *parts] if token.type in ("html_block", "html_inline")]
    assert all(BREAKS.fullmatch(html) for html in raw), raw
    addresses = [str(part.attrGet("href")) for part in parts if part.type == "link_open"]
    assert all(address.startswith(links or "no link") for address in addresses), addresses
    images = [str(part.attrGet("src")) for part in parts if part.type == "image"]
    assert all(image.startswith("data:image/") for image in images), images
    assert len(images) == num_pictures
    assert not [part.type for part in parts if part.type in ("em_open", "s_open")]
    return shown(parts) + "".join(token.content for token in blocks if token.type in ("fence", "code_block"))
