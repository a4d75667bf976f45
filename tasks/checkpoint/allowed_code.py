"""Which Python files of a checkpoint may run: those named ``modeling_x.py``, and of ``modeling_x.py@sha256:HEX`` these bytes
alone. Where somebody else chooses the checkpoint, a name allows whatever they put behind it."""

from collections.abc import Iterable, Mapping

from dpo_core.contract.errors import ConfigError

PINNED = "@sha256:"


def code_names(allowed: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the files, without hashes."""
    return tuple(entry.partition(PINNED)[0] for entry in allowed)


def other_code(allowed: Iterable[str], files: Mapping[str, str]) -> list[str]:
    """Return names of ``files`` (name -> sha256) that are allowed with another content than theirs."""
    pins = [(name, pin) for name, _, pin in (entry.partition(PINNED) for entry in allowed) if pin]
    return sorted(name for name, pin in pins if name in files and files[name] != pin)


def check_pinned(allowed: Iterable[str], where: str) -> None:
    """Raise ``ConfigError`` if a file is allowed by its name alone. ``where``: the recipe"""
    if by_name := [entry for entry in allowed if PINNED not in entry]:
        raise ConfigError(
            f"{where} allows {', '.join(by_name)} to run, whatever is in it, and an event says which "
            "checkpoint it comes from. Say which bytes you have read: checkpoint.allow_remote_code: "
            f"[{by_name[0]}{PINNED}<what sha256sum {by_name[0]} prints>]."
        )
