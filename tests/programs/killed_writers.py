"""``python -m tests.programs.killed_writers train --job ...``: checkpoints written slowly behind the training, and a rank
that is killed in the middle of one.

``KILL`` in the environment is "rank:chunk": who is killed when it is about to write its n-th chunk of values; empty: nobody.
Each rank leaves in ``behind-<rank>.json`` of the job's folder how many steps' updates came while it wrote, and how many
seconds passed from the beginning of the last checkpoint to its end.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from dpo_core import __main__ as program
from dpo_core.engine import snapshot
from dpo_core.training import saving
from tests.programs.small_chunks import cut_logits
from tests.waiting import PATIENCE_SECONDS

KILL = "PAIRLINE_TEST_KILL_WRITER"
CHUNK_SECONDS = 0.01
CHUNK_BYTES = 4096


def main() -> int:
    """Slow the writer down, then what the program does."""
    cut_logits()
    rank, chunk = map(int, (os.environ.get(KILL) or "-1:0").split(":"))
    saving.WRITTEN_AT_ONCE_BYTES, snapshot.CHUNK_BYTES = 0, CHUNK_BYTES
    write, before_update = snapshot.LiveChunk.write_to, saving.Saving.before_update
    begin, finish = saving.PendingCheckpoint.begin, saving.Saving.finish
    seen, update_came = {"chunks": 0, "behind": 0, "began": 0.0, "lasted": 0.0}, threading.Event()

    def slow_write(self, file):
        seen["chunks"] += 1
        if seen["chunks"] == chunk and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGKILL)
        update_came.wait(PATIENCE_SECONDS)  # the first checkpoint's writer; however slow the steps are
        time.sleep(CHUNK_SECONDS)
        write(self, file)

    def counted(self):
        before_update(self)
        if self.pending is not None and not self.pending.is_written:
            seen["behind"] += 1
            update_came.set()

    def begun(*arguments):
        seen["began"] = time.monotonic()
        return begin(*arguments)

    def finished(self):
        is_under_way = self.pending is not None
        finish(self)
        if is_under_way:
            seen["lasted"] = time.monotonic() - seen["began"]

    snapshot.LiveChunk.write_to, saving.Saving.before_update = slow_write, counted
    saving.PendingCheckpoint.begin, saving.Saving.finish = begun, finished
    code = program.main(sys.argv[1:])
    (Path(sys.argv[-1]).parent / f"behind-{os.environ['RANK']}.json").write_text(json.dumps(seen))
    return code


if __name__ == "__main__":
    sys.exit(main())
