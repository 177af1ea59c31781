"""The store room: a catalog of names and versions, and immutable blobs named by their digest."""

from __future__ import annotations

from patchbay.store.base import DEFAULT_TENANT, BlobStore, Catalog, DeltaRecord, Digest, MergeRecord, check_name
from patchbay.store.filesystem import FileBlobs
from patchbay.store.hub import Hub, Upload
from patchbay.store.sqlite import SqliteCatalog

__all__ = [
    "DEFAULT_TENANT",
    "BlobStore",
    "Catalog",
    "DeltaRecord",
    "Digest",
    "FileBlobs",
    "Hub",
    "MergeRecord",
    "SqliteCatalog",
    "Upload",
    "check_name",
]
