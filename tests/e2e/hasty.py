"""A server that waits for nobody: `python hasty.py BASE STORE SECONDS`, the time that a slow client is given."""

from __future__ import annotations

import sys
from pathlib import Path

from patchbay_server import connections, server
from patchbay_server.settings import Settings


def main(base: str, store: Path, seconds: float) -> None:
    connections.HEAD_S = connections.BODY_S = seconds
    server.serve(Settings(base=base, store=store, port=0, workers=0, max_body_bytes=1 << 20))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
