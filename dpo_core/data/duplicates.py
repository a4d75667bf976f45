"""Which rows of a pool are the same as another. Plain numpy over all rows at once, so any number of workers finds the same.

Shapes: N rows of the pool.
"""

import numpy as np


def exact_duplicates(
    keys: np.ndarray, looked_at: np.ndarray, groups: np.ndarray, keep_last: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return places of the rows whose key and group an earlier row has (a later one for ``keep_last``), ascending, and
    for each the place of the row that stays, int64 [n] both.

    ``keys``: bytes S [N]; ``looked_at``: bool [N]; ``groups``: int [N], rows of different groups are never the same.
    """
    places = np.flatnonzero(looked_at)
    places = places[::-1] if keep_last else places
    order = np.lexsort((keys[places], groups[places]))  # stable: equal rows stay in the order of ``places``
    ordered = places[order]
    repeats = np.zeros(len(ordered), dtype=bool)
    repeats[1:] = (keys[ordered[1:]] == keys[ordered[:-1]]) & (groups[ordered[1:]] == groups[ordered[:-1]])
    first = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(ordered))))
    found, stays = ordered[repeats], ordered[first[repeats]]
    ascending = np.argsort(found)
    return found[ascending], stays[ascending]
