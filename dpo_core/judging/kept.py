"""What a judge has said, kept by content as it comes: a killed step goes on behind it, another run asks for the rest.

``<folder>/<random>.jsonl``: a file for each start, which nobody else writes to; a line holds a key and what was said. What a
kill cuts off is the last line of a file, which is passed over.
"""

import json
import os
import secrets
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dpo_core.contract.errors import from_os_error
from dpo_core.contract.regular_file import open_regular


class KeptWords:
    """Key -> what the judge said, a JSON value. ``put`` may be called by several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._said: dict[str, Any] = {}
        self._file: int | None = None
        for path in sorted(folder.glob("*.jsonl")):
            self._read(path)

    def _read(self, path: Path) -> None:
        with os.fdopen(open_regular(path), "rb") as file:
            for line in file:
                try:
                    key, said = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(key, str):
                    self._said[key] = said

    def __contains__(self, key: str) -> bool:
        return key in self._said

    def __getitem__(self, key: str) -> Any:
        return self._said[key]

    def put(self, said: dict[str, Any]) -> None:
        """Keep several at once: they are on the disk when this returns. Raises ``DiskFull`` or ``StoreError``."""
        lines = "".join(json.dumps(entry) + "\n" for entry in said.items()).encode()
        with self._lock:
            try:
                if self._file is None:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    path = self._folder / f"{secrets.token_hex(8)}.jsonl"
                    self._file = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                _write_all(self._file, lines)
                os.fsync(self._file)
            except OSError as error:
                raise from_os_error(error, "keeping what the judge said") from error
            self._said |= said

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]
