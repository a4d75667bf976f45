"""What is worth a second look in a source's rows, as sentences: plan, ledger and report say the same ones."""

from collections.abc import Iterator

from dpo_core.contract.amount import is_count

FEW_ROWS, LARGE_SET = 3, 100  # "1", "2", "3" of a hundred rows or more: most often meant as a proportion
MANY_TRUNCATED, MANY_REPEATED = 0.1, 0.1
FILES_NAMED = 5


def amount_warning(label: str, amount: str, available_rows: int | None) -> str | None:
    """Return what is odd about a source's amount; ``available_rows`` None: the set's size is not known."""
    if not is_count(amount) or not 1 <= int(amount) <= FEW_ROWS:
        return None
    if available_rows is not None and available_rows < LARGE_SET:
        return None
    rows = "1 row" if int(amount) == 1 else f"{int(amount)} rows"
    of = "the set, however large it is" if available_rows is None else f"{available_rows:,}"
    return (
        f"{label}: amount {amount} takes {rows} of {of}. A proportion has a dot: write {int(amount)}.0 for "
        + ("all of them." if int(amount) == 1 else f"{int(amount)} times all of them.")
    )


def truncation_warning(label: str, fraction: float, is_estimate: bool = False) -> str | None:
    """Return what a share of cut pairs means, None below ``MANY_TRUNCATED``."""
    if fraction < MANY_TRUNCATED:
        return None
    share = f"{fraction:.0%}".replace("%", " %")
    return (
        f"{label}: {'about ' if is_estimate else ''}{share} of the pairs {'would be' if is_estimate else 'are'} cut at "
        "data.max_length_tokens, so answers end without their ends. Raise it, or set data.when_too_long: drop."
    )


def left_out_warning(label: str, count: int, rows: tuple[int, ...]) -> str | None:
    """Return what it means that the chat template writes some answers in part, None if there are none."""
    if not count:
        return None
    return (
        f"{label}: the chat template leaves out a part of the answers of {count:,} pairs "
        f"({_rows(count, rows)}), thinking for instance; what it writes is trained, and the evaluation asks in that "
        "context. `pairline show-rows` shows them."
    )


def prompt_left_out_warning(label: str, count: int) -> str | None:
    """Return what it means that the chat template leaves out something of some prompts' turns, None if there are none."""
    if not count:
        return None
    return (
        f"{label}: the chat template leaves out a turn of the prompt, or a part of one, in {count:,} pairs, so their "
        "answers are trained behind another prompt than the rows have. Unless that is how the model was trained, choose "
        "another one (checkpoint.chat_template). `pairline show-rows` shows what it writes."
    )


def passed_by_warning(label: str, count: int, rows: tuple[int, ...]) -> str | None:
    """Return what it means that a column speaks of what comes before the answers, and none of it is there; None if there
    are none."""
    if not count:
        return None
    return (
        f"{label}: in {count:,} pairs ({_rows(count, rows)}) the column of the prompt, or one of turns before it (history, "
        "conversations, messages), says what does not stand before the answers that are trained, and it is passed by: "
        "whole conversations are taken as they are, and a history is read as messages or [[question, answer], ...]. If it "
        "belongs there, write it into the prompt or both conversations; if it does not, remove it. `pairline show-rows` "
        "shows what is trained."
    )


def repeated_warning(label: str, count: int, rows: tuple[int, ...], kept: int) -> str | None:
    """Return what it means that both answers of many of the ``kept`` pairs begin with the prompt, None below
    ``MANY_REPEATED``: code is completed so."""
    if count < MANY_REPEATED * max(1, kept):
        return None
    return (
        f"{label}: in {count:,} of {kept:,} pairs ({_rows(count, rows)}) both answers begin with the whole text of the turn "
        "before them, so the model is trained to say that again. If they are whole texts, cut the prompt off, or leave its "
        "column out where answers are conversations. `pairline show-rows` shows what is trained."
    )


def unnamed_role_warning(label: str, count: int, rows: tuple[int, ...]) -> str | None:
    """Return what it means that a chat template names the role of tools' results, and not that of some turns; None if
    there are none."""
    if not count:
        return None
    return (
        f"{label}: {count:,} pairs ({_rows(count, rows)}) have turns of a role that the chat template does not name "
        "(environment, for instance), though it names `tool`, and it writes them under a header that the model need not "
        "know. If they are results of tools, call the role `tool`. `pairline show-rows` shows them."
    )


def _rows(count: int, rows: tuple[int, ...]) -> str:
    return f"rows {', '.join(map(str, rows[:5]))}{', ...' if count > 5 else ''}"


def replaced_warning(label: str, count: int, rows: tuple[int, ...]) -> str | None:
    """Return what it means that halves of characters were replaced in some pairs, None if there are none."""
    if not count:
        return None
    return (
        f"{label}: {count:,} pairs hold half a character (\\ud83d alone, as where a text was cut within an emoji; "
        f"{_rows(count, rows)}), which no tokenizer takes; \ufffd stands in its "
        "place, also where it is trained. Repair these rows, or take them out."
    )


def dropped_sentence(label: str, rows_in: int, dropped: dict[str, int]) -> str | None:
    """Return how many rows of a source were dropped and why, None if none were. ``dropped``: reason -> rows."""
    if not any(dropped.values()):
        return None
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items() if count)
    return f"{label}: {sum(dropped.values()):,} of {rows_in:,} rows dropped ({reasons})."


def files_warning(label: str, passed_by: list[str], missing: list[str]) -> str | None:
    """Return what it means that files of a directory are not read, or not there, None if there are none."""
    said = []
    if passed_by:
        said.append(
            f"{_some(passed_by)} {'are' if len(passed_by) > 1 else 'is'} not read: packed, or named after no split or "
            "another one (a source of its own reads any file)"
        )
    if missing:
        said.append(f"of its shards {_some(missing)} {'are' if len(missing) > 1 else 'is'} missing")
    return f"{label}: {'; '.join(said)}." if said else None


def _some(names: list[str]) -> str:
    more = len(names) - FILES_NAMED
    return ", ".join(names[:FILES_NAMED]) + (f" and {more:,} more" if more > 0 else "")


NO_END_MARK = (
    "The chat template closes an answer with no special token{found}, so nothing teaches the model to stop, and "
    "answers run on until evaluation.max_new_tokens. Choose another one (checkpoint.chat_template)."
)


def all_of(*found: str | None) -> Iterator[str]:
    """Yield the warnings that there are."""
    yield from filter(None, found)
