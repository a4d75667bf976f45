"""What the evaluation asks: the held-out rows' prompts with the assistant's turn opened, beside the rows.

The ids that most prompts have by themselves are those that their rows begin with, and lie in the pool. Of the others they
are made, in processes of their own as rows are.
"""

import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from dpo_core.contract.errors import CheckpointError
from dpo_core.data.pair_file import PROMPTS_FILE, PROMPTS_SCHEMA, ROWS_PER_BATCH, list_array
from dpo_core.data.pairs import readable_prompt
from dpo_core.data.pool import SECONDS_PER_CHUNK, PoolMaker
from dpo_core.data.pool_file import PoolReader
from dpo_core.data.workers import in_workers

Origins = tuple[np.ndarray, np.ndarray, np.ndarray]  # sources, rows, numbers of pairs, [n] each


def write_prompts(
    maker: PoolMaker, pool: PoolReader, places: np.ndarray, folder: Path, num_workers: int
) -> None:
    """Write the prompts of the kept rows at ``places``, in that order, into ``folder``. Raises ``CheckpointError`` for
    a template or a tokenizer that fails at a prompt alone."""
    is_known = pool.prompt_lengths[places] >= 0
    made = _made(maker, pool, places[~is_known], num_workers)
    with pa.OSFile(str(folder / PROMPTS_FILE), "wb") as sink, pa.ipc.new_file(sink, PROMPTS_SCHEMA) as writer:
        for first in range(0, len(places), ROWS_PER_BATCH):
            batch = places[first : first + ROWS_PER_BATCH]
            known = is_known[first : first + ROWS_PER_BATCH]
            there = iter(pool.prompt_ids(batch[known]))
            ids = [next(there) if one else next(made) for one in known.tolist()]
            pairs = maker.pairs_at(*_origins(pool, batch))
            constraints = [json.dumps(list(pair.constraints), sort_keys=True) for pair in pairs]
            columns = [
                list_array(ids, np.int32),
                pa.array(map(readable_prompt, pairs), pa.string()),
                pa.array(constraints, pa.string()),
            ]
            writer.write_batch(pa.record_batch(columns, schema=PROMPTS_SCHEMA))


def _origins(pool: PoolReader, places: np.ndarray) -> Origins:
    return pool.sources[places], pool.rows[places], pool.numbers[places]


def _made(maker: PoolMaker, pool: PoolReader, places: np.ndarray, num_workers: int) -> Iterator[np.ndarray]:
    """Ids of the prompts of rows whose own do not tell, in order."""
    if not len(places):
        return iter(())
    batches = [places[first : first + ROWS_PER_BATCH] for first in range(0, len(places), ROWS_PER_BATCH)]
    over = CheckpointError(
        "The tokenizer takes too much time or memory for prompts alone, though not for their rows. It is "
        "not fit for use; choose another checkpoint."
    )
    made = in_workers(
        partial(_prompt_ids, maker),
        (_origins(pool, batch) for batch in batches),
        min(num_workers, len(batches)),
        SECONDS_PER_CHUNK,
        over,
    )
    return chain.from_iterable(made)


def _prompt_ids(maker: PoolMaker, origins: Origins) -> list[np.ndarray]:
    return maker.pair_tokenizer.prompt_ids(maker.pairs_at(*origins))
