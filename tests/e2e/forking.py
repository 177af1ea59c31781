"""A program that imports everything once and then forks one real server after another, so that a restart takes a
fraction of a second.

`python forking.py BASE STORE`: each line on stdin starts a server, whose process id is printed; the server announces
itself on stderr as always. The end of stdin ends the program.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import transformers

from patchbay_server.server import serve
from patchbay_server.settings import Settings


def main(base: str, store: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    print("ready", flush=True)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                serve(Settings(base=base, store=store, port=0))
            finally:
                os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
