"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JSON_KEY = "patchbay.json"
JOBS_DEFAULT = "in Redis with the catalog, else jobs.db in the store"


def _remember(context: typer.Context, value: bool) -> bool:
    # Seen by the group when the command fails: its error is JSON too.
    context.meta[JSON_KEY] = value
    return value


JsonOption = Annotated[
    bool, typer.Option("--json", callback=_remember, help="Print one JSON object on stdout and nothing else.")
]
BaseOption = Annotated[str, typer.Option(help="The base model: a Hugging Face folder or hub id.", metavar="MODEL")]
DeltaArgument = Annotated[Path, typer.Argument(help="A delta file.", metavar="DELTA", show_default=False)]
StoreOption = Annotated[
    Path | None,
    typer.Option(envvar="PATCHBAY_STORE", show_default="patchbay-store", metavar="DIR", help="The server's store."),
]
StoreUrlOption = Annotated[
    str | None,
    typer.Option(envvar="PATCHBAY_STORE_URL", show_default="sqlite in the store", help="The server's catalog."),
]
BlobUrlOption = Annotated[
    str | None,
    typer.Option(envvar="PATCHBAY_BLOB_URL", show_default="files in the store", help="The server's blobs."),
]
JobsDbOption = Annotated[
    Path | None,
    typer.Option(envvar="PATCHBAY_JOBS_DB", show_default=JOBS_DEFAULT, help="The server's queue of jobs."),
]
UrlOption = Annotated[
    str, typer.Option(envvar="PATCHBAY_URL", help="The running server; its key is read from PATCHBAY_API_KEY.")
]
DEFAULT_URL = "http://127.0.0.1:8321"
