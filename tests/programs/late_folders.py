"""``python -m tests.programs.late_folders reference --job ...``: each rank lists the reference cache as a network file
system may: as it was when first looked at. Ranks but the first see an empty folder. Files are opened by name as ever."""

import os
import sys
from pathlib import Path

from dpo_core import __main__ as program
from tests.programs.small_chunks import cut_logits

SHARDS = "shard-*.npz"


def main() -> int:
    """Remember the first list, then what the program does."""
    cut_logits()
    glob, seen = Path.glob, dict[Path, list[Path]]()

    def listed(folder: Path, pattern: str):
        if pattern != SHARDS:
            return glob(folder, pattern)
        if folder not in seen:
            seen[folder] = list(glob(folder, pattern)) if os.environ["RANK"] == "0" else []
        return iter(seen[folder])

    Path.glob = listed
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
