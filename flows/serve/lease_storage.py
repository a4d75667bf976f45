"""Where the server keeps who holds which slot, on the disk, so that it is known after a restart.
PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE names this module.

Prefect's own storage locks its index by a file with the server's process id, and takes the lock of a killed server for held
while any process has that number, as the next server in a container has. What asks for a slot then waits for ever. The
lock here is the kernel's, which drops it when its holder dies.
"""

import asyncio
import fcntl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.server.concurrency.lease_storage import filesystem

LOCK_FILE = "index.lock"
SECONDS_BETWEEN_TRIES = 0.02


class ConcurrencyLeaseStorage(filesystem.ConcurrencyLeaseStorage):
    """Prefect's, with another lock."""

    @asynccontextmanager
    async def _lock_expiration_index(self) -> AsyncGenerator[None, None]:
        """Be the only one that writes the index, of all servers that share the folder."""
        self._ensure_storage_path()
        with (self.storage_path / LOCK_FILE).open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(SECONDS_BETWEEN_TRIES)
            yield
