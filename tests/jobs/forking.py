"""A program that imports everything once and then forks real workers, so that a start is quick.

`python forking.py BASE`: each line on stdin, an object with `owner`, `lease_s`, `settings` and `environment`, is a new
worker, whose process id is printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from patchbay_server.jobs.opened import open_queue
from patchbay_server.jobs.wiring import open_handlers
from patchbay_server.jobs.worker import Worker
from patchbay_server.settings import Settings


def work(settings: Settings, owner: str, lease_s: float) -> None:
    Worker(open_queue(settings), owner, lambda: open_handlers(settings), lease_s).run_forever()


def main(base: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are nobody's to wait for
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                os.environ.update(order["environment"])
                work(Settings(base=base, **order["settings"]), order["owner"], order["lease_s"])
            finally:
                os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
