"""Text that others wrote, so that it can be looked at: nothing in it steers the terminal or the page that shows it.

Model answers, rows of data sets, names, paths, log lines and error messages may hold anything. Shown as they are, escape
sequences write to the clipboard, clear the screen or forge lines, and characters without a shape hide or reorder text.
They are shown as what they are (``\\x1b``, ``\\u202e``); emoji and all scripts stay as they are.
"""

import re

STEERING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
    "\u2028\u2029"  # line ends that are none everywhere
    "\u061c\u202a-\u202e\u2066-\u206f"  # reorder what follows; the marks U+200E and U+200F do not
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u3164\ufeff\uffa0"  # without a shape
    "\ufe00-\ufe0f\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
)  # no characters: what is written with them cannot be read
LETTER = f"[^\x00-\x7f{STEERING}]"  # or emoji
# Single ones of those without a shape stay where a script needs them.
NEEDED = (
    "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f"  # the flags of England, Scotland, Wales, ...
    f"|(?:(?<={LETTER})|(?<={LETTER}\ufe0f))[\u200c\u200d]"  # joins emoji; Persian and Indic spelling
    "|(?<=[\u1820-\u18aa])[\u180b-\u180f]"  # forms of Mongolian letters
    f"|(?<=[^\\s{STEERING}])[\ufe00-\ufe0f]"  # emoji or text
    "|(?<=[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003fffd])[\U000e0100-\U000e01ef]"
)  # variants of Chinese characters
SHOWN, ANY = re.compile(f"({NEEDED})|[{STEERING}]"), re.compile(f"[{STEERING}]")


def visible(text: str) -> str:
    """Return ``text`` with everything that steers or hides shown as an escape. Lines and tabs stay. Twice is the same
    as once.
    """
    return (
        SHOWN.sub(_shown, text.replace("\r\n", "\n")) if ANY.search(text) else text
    )  # the search alone: 10 times faster


def one_line(text: str) -> str:
    """Return the same on one line, where a line of its own would look like one of ours."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _shown(found: re.Match[str]) -> str:
    if found[1]:
        return found[1]
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
