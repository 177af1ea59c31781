"""A whole store into a folder, and from a folder into another store, whatever either is made of. Knows no formats.

An export is of one moment: what the catalog held when it was read, and the bytes that this names. Servers may run; what
they change later is not in it. Blobs go first and rows last, all at once: what was interrupted is run again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from patchbay.errors import InputError, NotFound, StoreUnavailable
from patchbay.store.archive import CATALOG, blob_path, open_file, read_catalog, write_catalog
from patchbay.store.base import Digest, disk_errors
from patchbay.store.hub import KEPT_S, Hub
from patchbay.store.snapshot import Snapshot, missing

OnBytes = Callable[[int, int], None]  # (bytes done, bytes in all)
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Moved:
    """What an export or an import has; `num_bytes` of its blobs. `new`: what of an import the store had not."""

    snapshot: Snapshot
    num_blobs: int
    num_bytes: int
    new: Moved | None = None


def export_store(hub: Hub, folder: Path, on_bytes: OnBytes = lambda done, total: None) -> Moved:
    """Blobs that are in the folder already are not copied again.

    Raises InputError for a folder with something else in it; StoreUnavailable where bytes are missing or damaged.
    """
    _check_folder(folder)
    snapshot = hub.catalog.snapshots.dump()
    wanted = snapshot.digests()
    for digest in wanted:
        hub.catalog.hold(digest, KEPT_S)  # what is deleted from now on stays until it was copied
    found = {digest: _size(hub, digest) for digest in wanted}
    gone = {digest for digest, size in found.items() if size is None}
    _refuse_missing(snapshot, gone)
    sizes = {digest: size for digest, size in found.items() if size is not None}
    done, total = 0, sum(sizes.values())
    for digest, size in sizes.items():
        on_bytes(done, total)
        target = blob_path(folder, digest)
        if not (target.is_file() and _hash_of(target) == digest):
            _copy_out(hub, digest, target)
        done += size
    on_bytes(done, total)
    write_catalog(folder, snapshot.without(gone))
    return Moved(snapshot.without(gone), len(sizes), total)


def import_store(hub: Hub, folder: Path, on_bytes: OnBytes = lambda done, total: None) -> Moved:
    """Adds all that was exported to a store, which keeps what it has.

    Raises InputError for a folder that is no export, or a damaged one; ImportConflict, before anything is written,
    where the store has something else in the place of something.
    """
    snapshot = read_catalog(folder)
    new_rows = missing(hub.catalog.snapshots.dump(), snapshot)
    exported = {digest: _exported_size(folder, digest, size) for digest, size in snapshot.digests().items()}
    sizes = {digest: size for digest, size in exported.items() if size is not None}
    done, total, copied = 0, sum(sizes.values()), list[int]()
    for digest, size in sizes.items():
        on_bytes(done, total)
        hub.catalog.hold(digest, KEPT_S)
        if _size(hub, digest) != size:
            _copy_in(hub, blob_path(folder, digest), digest)
            copied.append(size)
        done += size
    on_bytes(done, total)
    hub.catalog.snapshots.load(snapshot)
    return Moved(snapshot, len(sizes), total, Moved(new_rows, len(copied), sum(copied)))


def _check_folder(folder: Path) -> None:
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        strangers = sorted({path.name for path in folder.iterdir()} - {CATALOG, f".{CATALOG}", "blobs"})
    if strangers:
        text = f"{folder} has {strangers[0]!r} in it and is no export: name an empty folder, or a new one"
        raise InputError(text, param="folder")


def _size(hub: Hub, digest: Digest) -> int | None:
    try:
        return hub.blobs.size(digest)
    except NotFound:
        return None


def _refuse_missing(snapshot: Snapshot, gone: set[Digest]) -> None:
    """Bytes that a tenant once brought may be gone; those of a version may not."""
    for row in snapshot.versions:
        if row.deleted_at is None and row.digest in gone:
            raise StoreUnavailable(
                f"the bytes of {row.tenant}/{row.name}@{row.version} are not there: `patchbay store fsck` says what is "
                "missing; upload it again, or delete it"
            )


def _exported_size(folder: Path, digest: Digest, size: int | None) -> int | None:
    """None for bytes that only a merge is pinned to and that were gone already. Raises InputError."""
    path = blob_path(folder, digest)
    if size is None and not path.exists():
        return None
    with open_file(path) as file:
        found = os.fstat(file.fileno()).st_size
    if size is not None and found != size:
        raise InputError(f"{path} has {found} bytes, not {size}: the export is damaged", param="folder")
    return found


def _copy_out(hub: Hub, digest: Digest, target: Path) -> None:
    temp = target.with_name(f".{target.name}")
    blob = hub.open_blob(digest)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with blob.open("rb") as source, temp.open("wb") as file:
            found = _copy(source, file)
            file.flush()
            os.fsync(file.fileno())
        if found == digest:
            temp.replace(target)
            return
        temp.unlink()
    raise StoreUnavailable(f"the blob {digest} is damaged, it has the bytes of {found}: upload it again")


def _copy_in(hub: Hub, path: Path, digest: Digest) -> None:
    temp = hub.blobs.new_temp()
    try:
        with open_file(path) as source, disk_errors(temp), temp.open("wb") as file:
            found = _copy(source, file)
        if found != digest:
            raise InputError(f"{path} has the bytes of {found}: the export is damaged", param="folder")
        hub.put(temp, digest, KEPT_S)
    finally:
        with disk_errors(temp):
            temp.unlink(missing_ok=True)


def _copy(source: BinaryIO, target: BinaryIO) -> Digest:
    hashed = hashlib.sha256()
    while piece := source.read(_PIECE):
        hashed.update(piece)
        target.write(piece)
    return f"sha256:{hashed.hexdigest()}"


def _hash_of(path: Path) -> Digest:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
