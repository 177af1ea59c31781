"""`patchbay worker`: a process that takes jobs from a server's store, beside the server's own or instead of them.

It need not be on the server's host where catalog and blobs can be reached from others.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from patchbay_server.commands.options import BlobUrlOption, JobsDbOption, JsonOption, StoreOption, StoreUrlOption
from patchbay_server.commands.output import open_console, print_json
from patchbay_server.commands.serve import make_settings


def worker(
    base: Annotated[
        str, typer.Option(envvar="PATCHBAY_BASE", metavar="MODEL", help="The server's base: a folder or hub id.")
    ],
    task: Annotated[
        str | None, typer.Option(envvar="PATCHBAY_TASK", show_default="from the base", help="What the server serves.")
    ] = None,
    store: StoreOption = None,
    store_url: StoreUrlOption = None,
    blob_url: BlobUrlOption = None,
    jobs_db: JobsDbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run compression jobs of a server until interrupted, on any host that reaches its catalog and its blobs.

    With --json the one object is printed when the worker has stopped.
    """
    places = {"store": store, "store_url": store_url, "blob_url": blob_url, "jobs_db": jobs_db}
    settings = make_settings({"base": base, "task": task, **places})
    from patchbay_server.jobs.opened import queue_place
    from patchbay_server.jobs.worker import work

    if not as_json:
        open_console(stderr=True).print(f"taking jobs from {queue_place(settings)}; Ctrl-C ends it", soft_wrap=True)
    started = time.monotonic()
    work(settings)
    if as_json:
        print_json({"base": settings.base, "store": str(settings.store), "seconds": time.monotonic() - started})
