"""`patchbay compress --server`: the fine-tune's files go up once, the server's workers compress them.

Ends in the report that the command would have made here, so that it prints and fails in the same way.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchbay_server.commands.compress import staged
from patchbay_server.commands.failures import ServerError
from patchbay_server.commands.output import BYTES, open_console, progress

if TYPE_CHECKING:
    from patchbay.compress.compress import Report
    from patchbay_server.commands.follow import JobClient


def compress_remotely(
    server: str,
    finetuned: str,
    name: str,
    options: Mapping[str, object],
    *,
    calibration: Path | None = None,
    labels: Path | None = None,
    activate: bool = True,
) -> Report:
    """Compresses on the server at the URL `server`; the delta is stored there as `name`.

    `options` are fields of POST /v1/compressions. The report's `path` says where the delta is. Raises
    UnsupportedBackbone for a folder that is no model; InputError for inputs that cannot be read or labels that do not
    match them; ServerUnreachable; ServerError, also for a job that failed.
    """
    from patchbay.compress.calibration import Calibration
    from patchbay.compress.compress import Report
    from patchbay_server.commands.follow import JobClient
    from patchbay_server.jobs.files import model_files

    inputs = {key: path for key, path in (("calibration", calibration), ("labels", labels)) if path is not None}
    if calibration is not None:
        Calibration.read(calibration, labels)  # what the job would fail of is said before gigabytes are sent
    files = model_files(finetuned)
    digests = _hash([*files.values(), *inputs.values()])
    body: dict[str, object] = {"name": name, "files": {key: digests[path] for key, path in files.items()}, **options}
    body |= {"activate": activate, **{key: digests[path] for key, path in inputs.items()}}
    with JobClient(server) as client:
        _upload(client, digests)
        # A key of its own: a POST whose answer was lost can be sent again, and a new run is a new job.
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        _, job = client.request("POST", "/v1/compressions", expect="id", json=body, headers=headers)
        result = _follow(client, job["id"])
    delta = result["delta"]
    try:
        return Report(**result["report"], path=f"{delta['name']}@{delta['version']} on {server}")
    except TypeError as error:
        message = f"{delta['name']}@{delta['version']} is stored, but the server reports as another version of Patchbay"
        raise ServerError(message, 500, code="unexpected_answer") from error


def _hash(files: list[Path]) -> dict[Path, str]:
    from patchbay_server.commands.sending import hash_file

    total, done, digests = sum(file.stat().st_size for file in files), 0, {}
    with progress("hash", BYTES) as update:
        update(0, total, "")
        for file in files:
            digests[file] = hash_file(file, _after(done, total, file, update))
            done += file.stat().st_size
    return digests


def _upload(client: JobClient, digests: Mapping[Path, str]) -> None:
    """Only what the server has not: another fine-tune's tokenizer, or this upload's first half."""
    wanted = {digest: file for file, digest in digests.items()}
    missing = {digest: file for digest, file in wanted.items() if not client.has(f"/v1/blobs/{digest}")}
    total, done = sum(file.stat().st_size for file in missing.values()), 0
    with progress("upload", BYTES) as update:
        update(0, total, "")
        for digest, file in missing.items():
            _send(client, file, digest, _after(done, total, file, update))
            done += file.stat().st_size


def _send(client: JobClient, file: Path, digest: str, on_bytes: Callable[[int], None]) -> None:
    from patchbay_server.commands.sending import RESUMABLE_BYTES, chunks, send_file

    size = file.stat().st_size
    if size >= RESUMABLE_BYTES:
        send_file(client, file, digest, on_bytes)
        return
    headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
    client.request("PUT", f"/v1/blobs/{digest}", expect="digest", content=chunks(file), headers=headers)
    on_bytes(size)


def _after(before: int, total: int, file: Path, update: Callable[[int, int, str], None]) -> Callable[[int], None]:
    """What of a file is done, told as part of all of them."""
    return lambda count: update(before + count, total, file.name)


def _follow(client: JobClient, job: str) -> dict[str, Any]:
    """The result of the job. What ends this command does not end the job."""
    try:
        with progress("compress") as bar:
            update = staged(bar, 0)
            update(0, 1, f"queued as job {job}: the next free worker of the server takes it")
            for event in client.follow(job):
                if event.kind == "progress":
                    update(event.data["done"], event.data["total"], event.data["stage"])
                elif event.is_last:
                    return _result(job, event.data)
    except KeyboardInterrupt:
        text = f"job {job} goes on: `patchbay jobs show {job}` looks at it, `patchbay jobs cancel {job}` ends it"
        open_console(stderr=True).print(text, soft_wrap=True)
        raise
    raise AssertionError("follow ends with the job's end")


def _result(job: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ServerError with the job's own error."""
    if data["state"] == "done":
        result: dict[str, Any] = data["result"]
        return result
    if data["state"] == "cancelled":
        raise ServerError(f"job {job} was cancelled", 500, code="cancelled")
    error = data["error"]
    status = 500 if error["type"] == "server_error" else 422
    raise ServerError(error["message"], status, code=error["code"], param=error["param"])
