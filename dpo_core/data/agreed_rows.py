"""What jobs of an array agree on before each computes its share of a reference pass: rows, in which order, for which layout.

Written once, by whoever comes first. Batches are cut from it, so they are those of a pass of one process whenever a share
is started, and started again. Without it a job that starts late would see others' rows in the cache and cut other batches,
whose padding may change the last bits of a value.
"""

import contextlib
import errno
import io
import os
import secrets
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from dpo_core.contract.config import ForwardLayout
from dpo_core.contract.errors import StoreError, from_os_error
from dpo_core.contract.jobs import ReferenceJob
from dpo_core.contract.store import fingerprint, write_bytes
from dpo_core.data.pair_dataset import Split

LAYOUTS: tuple[ForwardLayout, ...] = get_args(ForwardLayout)


@dataclass(frozen=True, slots=True)
class AgreedRows:
    """``rows``: those that the cache lacked, longest first, by split."""

    layout: ForwardLayout
    rows: dict[Split, list[int]]


def agreed_file(job: ReferenceJob) -> Path:
    """Return where it stands: in the job's folder, under a name of what the cut depends on besides the mixture."""
    cut = fingerprint({"tokens": job.tokens_per_batch, "forward": job.forward, "attention": job.attention})
    return job.out_dir / f"agreed-rows-{cut[:16]}.npz"


def read_agreed(job: ReferenceJob) -> AgreedRows | None:
    """Return it, None if nobody has written it. Raises ``StoreError`` for a damaged one."""
    file = agreed_file(job)
    try:
        with np.load(file, allow_pickle=False) as read:
            layout = LAYOUTS[int(read["layout"])]
            return AgreedRows(
                layout, {split: read[split].tolist() for split in read.files if split != "layout"}
            )
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise StoreError(f"{file} cannot be read ({error}).", "Delete it, then start again.") from error


def agree(job: ReferenceJob, proposed: AgreedRows) -> AgreedRows:
    """Return ``proposed`` if nobody was first, else what stands there.

    A link appears whole or not at all, and fails where there is one, on network file systems, too.
    """
    file, content = agreed_file(job), io.BytesIO()
    train, held_out = (np.asarray(proposed.rows[split], np.int64) for split in ("train", "held_out"))
    np.savez(content, layout=np.int64(LAYOUTS.index(proposed.layout)), train=train, held_out=held_out)
    # In containers processes of several jobs may have one number on one host.
    mine = file.with_name(f"{file.stem}.{secrets.token_hex(8)}.npz")
    write_bytes(mine, content.getvalue())
    try:
        os.link(mine, file)
    except (FileExistsError, FileNotFoundError):  # the other's is read, if there is one
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise from_os_error(error, f"writing {file.name}") from error
        os.replace(
            mine, file
        )  # a file system without hard links: whoever comes last, for those who start later
    finally:
        with contextlib.suppress(OSError):
            mine.unlink()
    if (agreed := read_agreed(job)) is None:
        raise StoreError(f"{file} was removed while it was read.", "Start again.")
    return agreed


def forget_agreed(job: ReferenceJob) -> None:
    """Remove it once the pass is complete."""
    with contextlib.suppress(OSError):
        agreed_file(job).unlink()
