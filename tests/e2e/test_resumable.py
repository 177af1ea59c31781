"""Uploads in parts to a server process that is killed in the middle of them."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
from tests.e2e.processes import forking
from tests.service.test_resumable import append, begin, offset

KILLS = 3
PIECE = 64 << 10


def test_kill_9_in_the_middle_of_parts_loses_nothing_that_was_acknowledged(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = random.Random(5).randbytes(6 << 20)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with forking(model_folder("vit"), tmp_path / "store") as forker:
        acknowledged = 0
        for _ in range(KILLS):
            client = forker.start()
            begin(client, digest, len(data))
            assert offset(client, digest) >= acknowledged
            acknowledged = offset(client, digest)
            for _ in range(2):
                sent = append(client, digest, acknowledged, data[acknowledged : acknowledged + PIECE])
                acknowledged = int(sent.headers["upload-offset"])
            under_way = threading.Event()

            def rest(at: int = acknowledged, reached: threading.Event = under_way) -> Iterator[bytes]:
                for start in range(at, at + (4 << 20), PIECE):
                    yield data[start : start + PIECE]
                    reached.set() if start > at + (1 << 20) else None

            def send(client: httpx2.Client = client, at: int = acknowledged) -> None:
                with suppress(httpx2.HTTPError):
                    append(client, digest, at, rest())

            sender = threading.Thread(target=send)
            sender.start()
            assert under_way.wait(60)
            forker.kill()
            sender.join()
        client = forker.start()
        at = offset(client, digest)
        assert at >= acknowledged
        assert append(client, digest, at, data[at:]).status_code == 204
        assert client.head(f"/v1/blobs/{digest}").headers["content-length"] == str(len(data))
    name = digest.removeprefix("sha256:")
    assert (tmp_path / "store" / "blobs" / "sha256" / name[:2] / name).read_bytes() == data
