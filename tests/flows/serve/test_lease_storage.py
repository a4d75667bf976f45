"""Who holds a slot is written down although the server before was killed while it wrote."""

import asyncio
import os
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.server.concurrency.lease_storage import ConcurrencyLeaseStorage as Protocol
from prefect.server.concurrency.lease_storage import filesystem

from flows.serve.lease_storage import ConcurrencyLeaseStorage

HOUR = timedelta(hours=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the lock of a killed server, whose number another process has now."""
    (tmp_path / "expirations.lock").write_text(str(os.getpid()))
    return tmp_path


def write_and_find(storage: Protocol, seconds: float, count: int = 1) -> bool:
    async def both() -> bool:
        leases = await asyncio.gather(*(storage.create_lease([uuid4()], HOUR) for _ in range(count)))
        return set(await storage.read_active_lease_ids()) == {lease.id for lease in leases}

    return asyncio.run(asyncio.wait_for(both(), timeout=seconds))


def test_prefects_own_waits_for_ever(folder):
    """Should this fail one day, ours is no longer needed."""
    with pytest.raises(TimeoutError):
        write_and_find(filesystem.ConcurrencyLeaseStorage(folder), seconds=2)


def test_ours_does_not_and_loses_none_of_many_at_once(folder):
    assert write_and_find(ConcurrencyLeaseStorage(folder), seconds=60, count=50)
