"""A program that imports everything once and then forks one real worker after another, so that a start is quick.

`python forking.py BASE TUNED`: each line on stdin, `OWNER STORE`, is a new worker, whose process id is printed. Its
jobs search for a density and end with a delta of TUNED in the store.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.jobs.searching import search

from patchbay.compress.compress import Options, compress
from patchbay_server.jobs.base import Json
from patchbay_server.jobs.publish import publish
from patchbay_server.jobs.run import Run
from patchbay_server.jobs.sqlite import SqliteQueue
from patchbay_server.jobs.wiring import open_bench
from patchbay_server.jobs.worker import Worker
from patchbay_server.settings import Settings


def work(settings: Settings, tuned: str, owner: str) -> None:
    bench = open_bench(settings)

    def compressed(run: Run) -> Json:
        found = search(run)
        folder = bench.hub.blobs.new_folder()
        file = folder / "delta.safetensors"
        compress(settings.base, tuned, file, Options(density=abs(found["best"][0]) % 1))
        run.check()
        record = publish(
            bench.hub, bench.base, file, "math", tenant=run.job.tenant, activate=True, max_bytes=bench.max_bytes
        )
        return found | {"digest": record.digest, "version": record.version}

    Worker(SqliteQueue(settings.jobs_path), owner, lambda: {"search": compressed}).run_forever()


def main(base: str, tuned: str) -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        owner, store = line.split()
        child = os.fork()
        if child == 0:
            try:
                work(Settings(base=base, store=Path(store)), tuned, owner)
            finally:
                os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
