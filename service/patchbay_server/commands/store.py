"""`patchbay store`: care of a store, by whoever runs the servers. Works on the store itself, beside its servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from patchbay_server.commands import store_moving
from patchbay_server.commands.options import BlobUrlOption, JobsDbOption, JsonOption, StoreOption, StoreUrlOption
from patchbay_server.commands.output import open_console, print_json, progress, size_text
from patchbay_server.commands.stores import open_hub

if TYPE_CHECKING:
    from patchbay.store.fsck import Problem

store = typer.Typer(name="store", help="Look after a store: collect what nothing names, check what is there, move it.")
store.command(name="export")(store_moving.export)
store.command(name="import")(store_moving.import_)
DAY_S = 86_400.0


@store.command()
def gc(
    store: StoreOption = None,
    store_url: StoreUrlOption = None,
    blob_url: BlobUrlOption = None,
    jobs_db: JobsDbOption = None,
    grace: Annotated[
        float, typer.Option(min=60, metavar="SECONDS", help="Blobs of deltas deleted more recently are kept.")
    ] = DAY_S,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove blobs that no delta, no job and no upload needs, and uploads that expired. Safe while servers run."""
    from patchbay.store.collect import collect
    from patchbay.store.presigned import Presigned
    from patchbay.store.resumable import Resumable

    with open_hub(store, store_url, blob_url, jobs_db) as (hub, queue), progress("collecting") as update:
        found = []
        for blob in collect(hub, grace, queue.digests, dry_run=dry_run):
            found.append(blob)
            update(len(found), len(found), blob.digest[:19])
        expired = [size for _, size in Resumable(hub).sweep(dry_run=dry_run)]
        expired += [put.size for put in Presigned(hub).sweep(dry_run=dry_run)]
    num_bytes = sum(blob.size for blob in found)
    if as_json:
        listed = [{"digest": blob.digest, "size": blob.size} for blob in found]
        uploads = {"count": len(expired), "bytes": sum(expired)}
        print_json({"dry_run": dry_run, "removed": listed, "bytes": num_bytes, "uploads": uploads})
        return
    verb = "would be removed" if dry_run else "removed"
    blobs = f"{len(found)} blobs {verb}, {size_text(num_bytes)}"
    swept = f"{len(expired)} expired uploads, {size_text(sum(expired))}"
    open_console().print(f"{blobs}; {swept}", soft_wrap=True)


@store.command()
def fsck(
    store: StoreOption = None,
    store_url: StoreUrlOption = None,
    blob_url: BlobUrlOption = None,
    jobs_db: JobsDbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every blob that a delta names and compare it with its digest. Changes nothing; exit code 1 for a problem."""
    from patchbay.store.fsck import check_store, nameless

    with open_hub(store, store_url, blob_url, jobs_db) as (hub, _), progress("checking") as update:
        checked = len(hub.catalog.all_versions())
        problems = list(check_store(hub, lambda done, total: update(done, total, "blobs")))
        left_over = len(nameless(hub))
    if as_json:
        listed = [{"kind": problem.kind, **_names(problem), "message": problem.message} for problem in problems]
        print_json({"ok": not problems, "versions": checked, "problems": listed, "nameless": left_over})
    else:
        console = open_console()
        for problem in problems:
            console.print(problem.message, soft_wrap=True)
        text = f"{checked} versions, {len(problems)} problems; {left_over} blobs have no name: `patchbay store gc`"
        console.print(text, soft_wrap=True)
    if problems:
        raise typer.Exit(1)


def _names(problem: Problem) -> dict[str, object]:
    record = problem.record
    return {
        "tenant": record.tenant,
        "name": record.name,
        "version": record.version,
        "digest": record.digest,
        "size": record.size,
    }
