"""The part of an object store that others write to, by signed URLs; and what objects are called. Knows no cache.

{prefix}/staging/TENANT/ab...   what was put for a digest
{prefix}/taken/ID               a copy of it, which no URL leads to, while it is hashed
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import cast

import obstore
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from patchbay.store.base import Digest, is_digest, is_name
from patchbay.store.staging import Put, Signed
from patchbay_server.stores.remote import CHUNK_BYTES

LEFT_OVER = timedelta(days=1)
_AZURE = {"x-ms-blob-type": "BlockBlob"}  # which its PUT has to say, and no URL can
Errors = Callable[[], AbstractContextManager[None]]


class ObjectStaging:
    """`Staging` in `store`, whose URLs begin with `scheme`; `errors` turns its failures into StoreUnavailable."""

    def __init__(self, store: ObjectStore, scheme: str, errors: Errors) -> None:
        self._store, self._headers, self._errors = store, _AZURE if scheme == "az" else {}, errors

    def sign(self, tenant: str, digest: Digest, seconds: float) -> Signed:
        store = cast("S3Store | GCSStore | AzureStore", self._store)
        with self._errors():
            url = obstore.sign(store, "PUT", _staged(tenant, digest), timedelta(seconds=seconds))
        return Signed(url, self._headers)

    def size(self, tenant: str, digest: Digest) -> int | None:
        with self._errors():
            try:
                return int(obstore.head(self._store, _staged(tenant, digest))["size"])
            except FileNotFoundError:
                return None

    def take(self, tenant: str, digest: Digest, size: int) -> Digest:
        copy, hashed = f"taken/{uuid.uuid4().hex}", hashlib.sha256()
        with self._errors():
            obstore.copy(self._store, _staged(tenant, digest), copy)
            try:
                for piece in read_pieces(self._store, copy, size):
                    hashed.update(piece)
                found = f"sha256:{hashed.hexdigest()}"
                if found == digest:
                    obstore.copy(self._store, copy, key_of(digest))
            finally:
                obstore.delete(self._store, copy)
            obstore.delete(self._store, _staged(tenant, digest))
        return found

    def remove(self, key: str) -> None:
        with self._errors():
            obstore.delete(self._store, key)

    def list_puts(self) -> Iterator[Put]:
        with self._errors():
            staged = [found for page in obstore.list(self._store, "staging") for found in page]
            taken = [found for page in obstore.list(self._store, "taken") for found in page]
        for found in staged:
            _, tenant, name = found["path"].rsplit("/", 2) if found["path"].count("/") >= 2 else ("", "", "")
            digest = f"sha256:{name}"
            if is_name(tenant) and is_digest(digest):
                yield Put(found["path"], tenant, digest, found["size"])
        for found in taken:
            if found["last_modified"] < datetime.now(UTC) - LEFT_OVER:
                yield Put(found["path"], None, None, found["size"])


def key_of(digest: Digest) -> str:
    name = digest.removeprefix("sha256:")
    return f"sha256/{name[:2]}/{name}"


def read_pieces(store: ObjectStore, key: str, size: int) -> Iterator[memoryview]:
    """All bytes of an object of this size; every request has a deadline of its own."""
    for start in range(0, size, CHUNK_BYTES):
        yield memoryview(obstore.get_range(store, key, start=start, end=min(start + CHUNK_BYTES, size)))


def _staged(tenant: str, digest: Digest) -> str:
    return f"staging/{tenant}/{digest.removeprefix('sha256:')}"
