"""Blobs in object storage: S3 and what speaks its protocol, Google Cloud Storage, Azure. Knows no cache.

Objects are `{prefix}/sha256/ab/ab...`. Credentials, endpoint and region come from where the provider's own tools take
them: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_KEY`, the
machine's role. Imports obstore, which the extra `objects` brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from patchbay.errors import StoreUnavailable
from patchbay.store.base import Digest, is_digest
from patchbay.store.staging import Staging
from patchbay_server.stores.object_staging import ObjectStaging, key_of, read_pieces
from patchbay_server.stores.remote import CHUNK_BYTES

CONNECT_S = 5.0
STALL_S = 10.0
"""How long the other side may say nothing in the middle of a request."""
REQUEST_S = 60.0
"""For one chunk, so that a slow line still moves 140 kB a second."""
RETRY_S = 5.0
"""So long after its first try a request may be tried again. All of them may: what is written under a digest are the
same bytes whoever writes them, and however often.
"""
RETRIES = 5
PARTS = 2
"""Chunks of one upload under way at a time: more share the line, and each has its deadline."""


class ObjectStorage:
    """`Objects` at `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.

    Raises StoreUnavailable if the bucket is not there or may not be listed.
    """

    def __init__(self, url: str, *, stall_s: float = STALL_S) -> None:
        self.place = url
        with self._errors():
            self._store = from_url(
                url,
                client_options={
                    "allow_http": True,  # only an endpoint that is written with http:// is spoken to so
                    "connect_timeout": timedelta(seconds=min(CONNECT_S, stall_s)),
                    "read_timeout": timedelta(seconds=stall_s),
                    "timeout": timedelta(seconds=REQUEST_S),
                },
                retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)},
            )
            next(iter(obstore.list(self._store, "sha256", chunk_size=1)), None)
        self.staging: Staging | None = ObjectStaging(self._store, url.partition("://")[0], self._errors)

    def size(self, digest: Digest) -> int | None:
        with self._errors():
            try:
                return int(obstore.head(self._store, key_of(digest))["size"])
            except FileNotFoundError:
                return None

    def read(self, digest: Digest, size: int) -> Iterator[memoryview]:
        pieces = read_pieces(self._store, key_of(digest), size)
        while True:
            with self._errors():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def write(self, digest: Digest, file: Path) -> None:
        """S3 is told the hash of every body and refuses others; an upload in parts is seen when all are there."""
        with self._errors():
            obstore.put(self._store, key_of(digest), file, chunk_size=CHUNK_BYTES, max_concurrency=PARTS)

    def remove(self, digest: Digest) -> None:
        with self._errors():
            try:
                obstore.delete(self._store, key_of(digest))
            except FileNotFoundError:
                return  # S3 does not even say so

    def digests(self) -> set[Digest]:
        with self._errors():
            listed = obstore.list(self._store, "sha256", chunk_size=1000)
            names = {f"sha256:{found['path'].rpartition('/')[2]}" for page in listed for found in page}
        return {name for name in names if is_digest(name)}

    def close(self) -> None:
        """Nothing is kept open."""

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            # The first line says what happened; the others are the library's insides.
            reason = str(error).partition("\n")[0]
            message = f"the blob store {self.place} does not answer as it should: {reason}"
            raise StoreUnavailable(message, part="the blob store") from error
