"""A fine-tune as blobs, and a worker that empties the app's queue in this process."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.service.serving import Served, ok

from patchbay_server.jobs.base import State
from patchbay_server.jobs.handlers import Bench
from patchbay_server.jobs.publish import Base
from patchbay_server.jobs.wiring import make_handlers
from patchbay_server.jobs.worker import Worker


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def blobs_of(folder: Path) -> dict[str, tuple[str, bytes]]:
    """File name -> (digest, bytes), of all files that a model needs."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".txt"))
    return {file.name: (digest_of(file.read_bytes()), file.read_bytes()) for file in files}


def put_blob(served: Served, data: bytes) -> str:
    assert served.client.put(f"/v1/blobs/{digest_of(data)}", content=data).status_code in (200, 201)
    return digest_of(data)


def put_folder(served: Served, folder: Path) -> dict[str, str]:
    """File name -> blob, put on the server."""
    return {name: put_blob(served, data) for name, (_, data) in blobs_of(folder).items()}


def work(served: Served) -> int:
    """How many jobs there were."""
    base = Base(str(served.backbone.folder), None)
    bench = Bench(served.hub, base, served.app.state.settings.max_upload_bytes)
    worker = Worker(served.app.state.queue, "test", lambda: make_handlers(bench))
    jobs = 0
    while worker.run_one():
        jobs += 1
    return jobs


def compressed(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """The job of POST /v1/compressions after a worker has had it."""
    job = ok(served.post("/v1/compressions", body), 202)
    assert work(served) == 1
    ended = ok(served.get(f"/v1/jobs/{job['id']}"))
    assert State(ended["state"]).is_final
    return ended
