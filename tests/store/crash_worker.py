"""A process that stores one delta after another until it dies; `test_crash.py` starts and kills it.

Usage: crash_worker.py ROOT SEED LINES. After LINES lines of the store's own code it kills itself with SIGKILL, wherever
that is: in an upload, between two syncs, before or after the rename, inside the catalog's transaction. With LINES 0 the
parent kills it. A line on stdout acknowledges a version.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import patchbay.store
from patchbay.store import FileBlobs, Hub, SqliteCatalog

STORE = str(Path(patchbay.store.__file__).parent)


def die_after(lines: int) -> None:
    left = lines

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(STORE):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def main(root: Path, seed: int, lines: int) -> None:
    source = random.Random(seed)
    if lines:
        die_after(lines)
    hub = Hub(SqliteCatalog(root / "catalog.db"), FileBlobs(root / "blobs"), frozenset())
    while True:
        name = source.choice(["math", "code", "law"])
        with hub.begin_upload(1 << 20) as incoming:
            for _ in range(source.randrange(1, 5)):
                incoming.write(source.randbytes(source.randrange(1, 50_000)))
            incoming.finish()
            record, _ = hub.commit(incoming, "default", name, "{}")
        print(record.name, record.version, record.digest, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
