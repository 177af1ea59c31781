"""A program that imports everything once and then forks one real worker after another, so that a start is quick.

`python forking.py BASE`: each line on stdin, `OWNER STORE`, is a new worker, whose process id is printed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from patchbay_server.jobs.sqlite import SqliteQueue
from patchbay_server.jobs.wiring import open_handlers
from patchbay_server.jobs.worker import Worker
from patchbay_server.settings import Settings


def work(settings: Settings, owner: str) -> None:
    Worker(SqliteQueue(settings.jobs_path), owner, lambda: open_handlers(settings)).run_forever()


def main(base: str) -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        owner, store = line.split()
        child = os.fork()
        if child == 0:
            try:
                work(Settings(base=base, store=Path(store)), owner)
            finally:
                os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1])
