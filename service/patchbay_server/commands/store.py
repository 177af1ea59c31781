"""`patchbay store`: care of a store, by whoever runs the servers. Works on the store itself, beside its servers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay_server.commands import store_moving
from patchbay_server.commands.options import BlobUrlOption, JobsDbOption, JsonOption, StoreOption, StoreUrlOption
from patchbay_server.commands.output import open_console, print_json, progress, size_text, time_text
from patchbay_server.commands.stores import note, open_hub

if TYPE_CHECKING:
    from patchbay.store import Hub
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
    keep_audit: Annotated[
        float | None,
        typer.Option(
            min=1, metavar="DAYS", show_default="all of it", help="Forget entries of the audit log that are older."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove blobs that no delta, no job and no upload needs, and uploads that expired. Safe while servers run."""
    from patchbay.store.collect import collect
    from patchbay.store.fsck import nameless
    from patchbay.store.presigned import Presigned
    from patchbay.store.resumable import Resumable

    with open_hub(store, store_url, blob_url, jobs_db) as (hub, queue), progress("collecting") as update:
        found = []
        for blob in collect(hub, grace, queue.digests, dry_run=dry_run):
            found.append(blob)
            update(len(found), len(found), blob.digest[:19])
        expired = [size for _, size in Resumable(hub).sweep(dry_run=dry_run)]
        expired += [put.size for put in Presigned(hub).sweep(dry_run=dry_run)]
        kept = len(nameless(hub) - {blob.digest for blob in found})
        forgotten = _forget(hub, keep_audit, dry_run)
    num_bytes = sum(blob.size for blob in found)
    if as_json:
        listed = [{"digest": blob.digest, "size": blob.size} for blob in found]
        uploads = {"count": len(expired), "bytes": sum(expired)}
        counts = {"bytes": num_bytes, "uploads": uploads, "kept": kept, "audit": forgotten}
        print_json({"dry_run": dry_run, "removed": listed, **counts})
        return
    verb = "would be removed" if dry_run else "removed"
    lines = [
        f"{verb}: {len(found)} blobs that nothing needs, {size_text(num_bytes)}",
        f"{verb}: {len(expired)} expired uploads, {size_text(sum(expired))}",
        f"kept: {kept} blobs of no version, which a job, an upload, a saved merge or a request under way may need",
    ]
    if keep_audit is not None:
        lines.append(f"{verb}: {forgotten} entries of the audit log")
    open_console().print("\n".join(lines), soft_wrap=True)


def _forget(hub: Hub, keep_days: float | None, dry_run: bool) -> int:
    """How many entries of the audit log go; that they went is an entry of its own."""
    from patchbay.store.base import DEFAULT_TENANT

    if keep_days is None:
        return 0
    before = time.time() - keep_days * DAY_S
    count = hub.catalog.audit.forget(before, dry_run=dry_run)
    if count and not dry_run:
        note(hub.catalog, DEFAULT_TENANT, "store gc", f"{count} entries from before {time_text(before)}")
    return count


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
        versions = hub.catalog.all_versions()
        blobs = len({version.digest for version in versions})
        problems = list(check_store(hub, lambda done, total: update(done, total, "blobs")))
        left_over = len(nameless(hub))
    if as_json:
        listed = [{"kind": problem.kind, **_names(problem), "message": problem.message} for problem in problems]
        print_json(
            {"ok": not problems, "versions": len(versions), "blobs": blobs, "problems": listed, "nameless": left_over}
        )
    else:
        console = open_console()
        for problem in problems:
            console.print(problem.message, soft_wrap=True)
        text = (
            f"checked: {len(versions)} versions of deltas in {blobs} blobs, {len(problems)} problems\n"
            f"not checked: {left_over} other blobs; `patchbay store gc` removes those of them that nothing needs"
        )
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
