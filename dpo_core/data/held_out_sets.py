"""The named sets of ``evaluation.sets`` as a mixture that is held out altogether, and their prompts, which another mixture
must not train on. Shapes: N pairs of the sets.
"""

from pathlib import Path

import numpy as np

from dpo_core.contract.refs import DatasetRef
from dpo_core.contract.store import verify_files
from dpo_core.data.pair_dataset import PairDataset

KEYS_FILE = "held_out_prompts.npy"  # keys of the prompts, bytes S32 [N], in the order of the held-out rows


def write_keys(folder: Path, prompt_keys: np.ndarray) -> None:
    """Write the keys of a mixture's held-out prompts into its folder."""
    np.save(folder / KEYS_FILE, prompt_keys)


class HeldOutPrompts:
    """The prompts of a mixture of sets."""

    def __init__(self, sets: DatasetRef) -> None:
        """Raises ``StoreError`` if they are not what was written."""
        verify_files(sets.path, {KEYS_FILE: sets.files[KEYS_FILE]})
        self.dataset = PairDataset.open(sets.path, "held_out")
        keys = np.load(sets.path / KEYS_FILE)
        self._keys, self._rows = np.unique(keys, return_index=True)

    def among(self, prompt_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of some prompts stand in a set, int64 [n] ascending, and in which of its pairs each does, int64
        [n]."""
        if not len(self._keys):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        places = np.minimum(np.searchsorted(self._keys, prompt_keys), len(self._keys) - 1)
        found = np.flatnonzero(self._keys[places] == prompt_keys)
        return found, self._rows[places[found]]

    def pair(self, row: int) -> tuple[str, int, str]:
        """Return the set of a pair, its number among all kept pairs of the sets, and the text of its prompt."""
        name = self.dataset.source_names[int(self.dataset.sources[row])]
        return name, row, self.dataset.prompt(row).text
