"""`patchbay store export` and `import`: a whole store moves, whatever catalog and blobs it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay_server.commands.options import BlobUrlOption, JobsDbOption, JsonOption, StoreOption, StoreUrlOption
from patchbay_server.commands.output import BYTES, open_console, print_json, progress, size_text
from patchbay_server.commands.stores import note, open_hub

if TYPE_CHECKING:
    from patchbay.store.moving import Moved

ExportArgument = Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="The folder of the export.")]


def export(
    folder: ExportArgument,
    store: StoreOption = None,
    store_url: StoreUrlOption = None,
    blob_url: BlobUrlOption = None,
    jobs_db: JobsDbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all of a store into a folder: names with their versions, merges, keys (hashes only), tenants, audit, bytes.

    Of the moment at which it begins; servers may run. Bytes that an earlier export has left there are not copied again.
    """
    from patchbay.store.moving import export_store

    with open_hub(store, store_url, blob_url, jobs_db) as (hub, _), progress("exporting", BYTES) as update:
        moved = export_store(hub, folder, lambda done, total: update(done, total, "blobs"))
    _tell(moved, folder, "exported to", as_json)


def import_(
    folder: ExportArgument,
    store: StoreOption = None,
    store_url: StoreUrlOption = None,
    blob_url: BlobUrlOption = None,
    jobs_db: JobsDbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add all of an export to a store, which keeps what it has; refused where anything is in the way.

    Every blob is compared with its digest. What was interrupted is run again.
    """
    from patchbay.store.base import DEFAULT_TENANT
    from patchbay.store.moving import import_store

    opened = open_hub(store, store_url, blob_url, jobs_db, make=True)
    with opened as (hub, _), progress("importing", BYTES) as update:
        moved = import_store(hub, folder, lambda done, total: update(done, total, "blobs"))
        note(hub.catalog, DEFAULT_TENANT, "store import", str(folder))
    _tell(moved, folder, "imported from", as_json)


def _tell(moved: Moved, folder: Path, verb: str, as_json: bool) -> None:
    new = {} if moved.new is None else {"new": _counts(moved.new)}
    if as_json:
        print_json({"folder": str(folder), **_counts(moved), **new})
        return
    text = f"{verb} {folder}: {_text(moved)}"
    if moved.new is not None:
        text += f"\nnew in the store: {_text(moved.new)}"
    open_console().print(text, soft_wrap=True)


def _counts(moved: Moved) -> dict[str, int]:
    found = moved.snapshot
    return {
        "versions": sum(row.deleted_at is None for row in found.versions),
        "merges": len(found.merges),
        "keys": len(found.keys),
        "audit": len(found.audit),
        "blobs": moved.num_blobs,
        "bytes": moved.num_bytes,
    }


def _text(moved: Moved) -> str:
    counts = _counts(moved).items()
    return ", ".join(
        [f"{n} {name}" for name, n in counts if name not in ("bytes", "audit")] + [size_text(moved.num_bytes)]
    )
