"""Uploads past the server: their bytes go to the object store itself, by a URL that is signed for a while.

They become a blob once their hash was seen to be the promised one. Knows no HTTP and no object store.
"""

from __future__ import annotations

from collections.abc import Iterator

from patchbay.errors import InputError, UploadConflict
from patchbay.store.base import Digest, check_digest
from patchbay.store.hub import KEPT_S, Hub
from patchbay.store.resumable import UNTOUCHED_S
from patchbay.store.staging import Put, Signed, Staging
from patchbay.store.uploads import is_begun

SIGNED_S = 3600.0
"""So long a URL is good."""
MAX_STAGED = 5 << 30
"""What object stores take in one request."""


class Presigned:
    """The uploads past the server of a store. Every call may raise StoreUnavailable."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def begin(self, tenant: str, digest: Digest, length: int) -> Signed | None:
        """Keeps room for it as an upload in parts does; None where the tenant has the bytes already.

        Raises InputError where blobs are not in an object store, or for more bytes than one takes at a time;
        QuotaExceeded, UploadConflict.
        """
        staging = self._staging()
        check_digest(digest)
        if length > MAX_STAGED:
            raise InputError(
                f"{length} bytes are more than the {MAX_STAGED} that an object store takes in one request: upload in "
                "parts, with POST /v1/uploads",
                param="length",
            )
        if self._hub.owns(tenant, digest):
            return None
        self._hub.catalog.uploads.begin(tenant, digest, length, UNTOUCHED_S)
        return staging.sign(tenant, digest, SIGNED_S)

    def finish(self, tenant: str, digest: Digest) -> tuple[Digest, int, bool]:
        """Makes a blob of what was put; the digest that it has, its size, and whether it is new to the tenant.

        With another digest nothing of it is kept.

        Raises NotFound, and UploadConflict where nothing was put or not as many bytes as promised.
        """
        staging = self._staging()
        if self._hub.has_blob(tenant, digest):
            return digest, self._hub.blobs.size(digest), False
        length = self._hub.catalog.uploads.get(tenant, digest).length
        size = staging.size(tenant, digest)
        if size != length:
            came = "nothing" if size is None else f"{size} bytes"
            raise UploadConflict(f"{came} came, not the {length} bytes that were promised: put them, then finish")
        self._hub.catalog.hold(digest, KEPT_S)
        found = staging.take(tenant, digest, length)
        if found == digest:
            return digest, length, self._hub.keep_stored(tenant, digest, length)
        self._hub.catalog.uploads.end(tenant, digest)
        return found, length, False

    def sweep(self, *, dry_run: bool = False) -> Iterator[Put]:
        """Removes what was put for uploads that have expired or ended, of all tenants; each of them."""
        staging = self._hub.blobs.staging
        if staging is None:
            return
        for put in staging.list_puts():
            if (
                put.tenant is not None
                and put.digest is not None
                and is_begun(self._hub.catalog.uploads, put.tenant, put.digest)
            ):
                continue
            if not dry_run:
                staging.remove(put.key)
            yield put

    def _staging(self) -> Staging:
        staging = self._hub.blobs.staging
        if staging is None:
            raise InputError(
                "the blobs of this server are not in an object store: upload in parts, with POST /v1/uploads"
            )
        return staging
