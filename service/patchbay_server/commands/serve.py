"""`patchbay serve`: options and environment -> `Settings` -> the server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchbay.errors import InputError, complaint
from patchbay_server.commands.options import JOBS_DEFAULT, JsonOption
from patchbay_server.commands.output import print_json
from patchbay_server.commands.quiet import silence_libraries

if TYPE_CHECKING:
    from patchbay_server.settings import Settings


def serve(
    base: Annotated[
        str, typer.Option(envvar="PATCHBAY_BASE", metavar="MODEL", help="The base: a Hugging Face folder or hub id.")
    ],
    task: Annotated[
        str | None, typer.Option(envvar="PATCHBAY_TASK", show_default="from the base", help="What to serve.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(envvar="PATCHBAY_DTYPE", show_default="auto", help="auto (as stored), bf16 or fp32.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(envvar="PATCHBAY_DEVICE", show_default="auto", help="auto, cpu or cuda.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(envvar="PATCHBAY_HOST", show_default="127.0.0.1", help="Beyond loopback only with a key."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(envvar="PATCHBAY_PORT", show_default="8321", min=0, max=65535, help="0 takes a free one."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(envvar="PATCHBAY_STORE", show_default="patchbay-store", metavar="DIR", help="Where deltas lie."),
    ] = None,
    store_url: Annotated[
        str | None,
        typer.Option(
            envvar="PATCHBAY_STORE_URL",
            show_default="sqlite in the store",
            help="The catalog: sqlite:///... or redis://...",
        ),
    ] = None,
    blob_url: Annotated[
        str | None,
        typer.Option(
            envvar="PATCHBAY_BLOB_URL",
            show_default="files in the store",
            help="Where bytes are kept: file:///..., s3://..., gs://..., az://... or redis://...",
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            envvar="PATCHBAY_REPLICAS",
            show_default="1",
            min=1,
            max=64,
            help="Processes that each hold the base; more than one needs the extra 'ray'.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            envvar="PATCHBAY_WORKERS", show_default="1", min=0, max=64, help="Processes for compression jobs; 0: none."
        ),
    ] = None,
    jobs_db: Annotated[
        Path | None,
        typer.Option(envvar="PATCHBAY_JOBS_DB", show_default=JOBS_DEFAULT, help="The queue of jobs, a SQLite file."),
    ] = None,
    kv_bytes: Annotated[
        str | None,
        typer.Option(
            envvar="PATCHBAY_KV_BYTES", show_default="1GiB", metavar="SIZE", help="For keys and values of texts."
        ),
    ] = None,
    delta_cache_bytes: Annotated[
        str | None,
        typer.Option(
            envvar="PATCHBAY_DELTA_CACHE_BYTES", show_default="4GiB", metavar="SIZE", help="For deltas in memory."
        ),
    ] = None,
    max_running: Annotated[
        int | None,
        typer.Option(envvar="PATCHBAY_MAX_RUNNING", show_default="32", min=1, help="Texts under way at a time."),
    ] = None,
    preload: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A delta to keep in memory from the start; may be given again."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load a base model and answer requests over HTTP until interrupted.

    Every option is an environment variable too. With --json the one object is printed when the server has stopped.
    """
    names = {"base": base, "task": task, "dtype": dtype, "device": device, "host": host, "port": port}
    places = {"store": store, "store_url": store_url, "blob_url": blob_url, "workers": workers, "jobs_db": jobs_db}
    memory = {
        "replicas": replicas,
        "kv_bytes": kv_bytes,
        "delta_cache_bytes": delta_cache_bytes,
        "max_running": max_running,
    }
    settings = make_settings({**names, **places, **memory, "preload": ",".join(preload or ()) or None})
    started = time.monotonic()
    _run(settings)
    if as_json:
        stopped = {"base": settings.base, "store": str(settings.store), "seconds": time.monotonic() - started}
        print_json(stopped)


def make_settings(given: dict[str, Any]) -> Settings:
    """Options that were not given are left to the environment and the defaults."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from patchbay_server.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        message = complaint(first["msg"])
        field = str(first["loc"][0]) if first["loc"] else None
        prefix = f"PATCHBAY_{field.upper()}: " if field else ""
        raise InputError(prefix + message, param=field) from None
    except SettingsError as error:
        raise InputError(str(error)) from None


def _run(settings: Settings) -> None:
    from patchbay_server.server import serve as run_server

    silence_libraries()
    try:
        run_server(settings)
    except KeyboardInterrupt:
        return  # how a server is told to stop: no failure
