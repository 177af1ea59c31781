"""Reads every file of a folder in a child of its own and prints what came out, one JSON line each.

A program: `python run.py FOLDER`. Knows nothing of what is expected.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

from tests.attacks.container import MAX_BYTES
from tests.attacks.lossless import zeros
from tests.delta.samples import FINGERPRINT, SPECS

from patchbay.delta import read_delta
from patchbay.errors import DeltaError


def outcome(path: Path) -> dict[str, object]:
    started = time.process_time()
    try:
        read_delta(path, SPECS, FINGERPRINT, MAX_BYTES, read_base=zeros)
        error, message, param = "", "accepted", None
    except DeltaError as refusal:
        error, message, param = type(refusal).__name__, refusal.message, refusal.param
    except BaseException:
        error, message, param = "crash", traceback.format_exc(), None
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {"name": path.stem, "error": error, "message": message, "param": param, "cpu_s": seconds, "peak": peak}


def main(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        child = os.fork()  # a peak is a process's: one child per file
        if child == 0:
            print(json.dumps(outcome(path)), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps({"name": path.stem, "error": f"died with status {status}"}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
