"""`patchbay jobs ls`, `show` and `cancel`: the jobs of a running server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from patchbay.errors import NotFound
from patchbay_server.commands.options import DEFAULT_URL, JsonOption
from patchbay_server.commands.output import facts, listing, open_console, print_json, printable, size_text, time_text

Record = Mapping[str, Any]
ServerOption = Annotated[
    str,
    typer.Option(
        "--server",
        "--url",
        metavar="URL",
        envvar="PATCHBAY_URL",
        help="The running server; its key is read from PATCHBAY_API_KEY.",
    ),
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", show_default=False, help="Its id.")]
COLUMNS = ("id", "kind", "name", "state", "evaluation", "best", "created")
jobs = typer.Typer(name="jobs", help="See and cancel the jobs of a running server.", no_args_is_help=True)


@jobs.command()
def ls(server: ServerOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """List the newest jobs."""
    body = _ask(server, "GET", "/v1/jobs", expect="data")
    if as_json:
        print_json(body)
    elif body["data"]:
        rows = [[_cells(job)[column] for column in COLUMNS] for job in body["data"]]
        open_console().print(listing(COLUMNS, rows, numeric=("evaluation", "best")))
    else:
        open_console().print("no jobs yet: `patchbay compress --server URL` makes one", soft_wrap=True)


@jobs.command()
def show(job: JobArgument, server: ServerOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """Show one job: its progress, and its result or error."""
    _print(_ask(server, "GET", _path(job), expect="state"), as_json)


@jobs.command()
def cancel(job: JobArgument, server: ServerOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """Cancel a job. A running one ends when it next reports."""
    cancelled = _ask(server, "DELETE", _path(job), expect="state")
    if cancelled["state"] in ("done", "failed"):
        open_console(stderr=True).print("it had ended before: nothing is cancelled", soft_wrap=True)
    _print(cancelled, as_json)


def _print(job: Record, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        open_console().print(facts(_details(job)))


def _ask(url: str, method: str, path: str, *, expect: str) -> dict[str, Any]:
    from patchbay_server.commands.client import Client

    with Client(url) as client:
        return client.request(method, path, expect=expect)[1]


def _path(job: str) -> str:
    """Checked here, because a `/` or `..` would be another resource."""
    if not (job.isascii() and job.isalnum()):
        raise NotFound(f"{job[:64]!r} is no job's id: `patchbay jobs ls` lists them", param="job")
    return f"/v1/jobs/{job}"


def _cells(job: Record) -> dict[str, object]:
    progress = job["progress"] or {}
    best = progress.get("best_score")
    return {
        "id": job["id"],
        "kind": job["kind"],
        "name": _name(job),
        "state": _state(job),
        "evaluation": progress.get("evaluation"),
        "best": None if best is None else f"{best:.4g}",
        "created": time_text(job["created_at"]),
    }


def _name(job: Record) -> object:
    return job["request"].get("name") or job["request"].get("model")


def _state(job: Record) -> str:
    return "running, to be cancelled" if job["cancelling"] else str(job["state"])


def _details(job: Record) -> dict[str, object]:
    progress, result, error = (job[name] or {} for name in ("progress", "result", "error"))
    delta, runs = result.get("delta"), job["state"] in ("queued", "running")
    return {
        "job": job["id"],
        "kind": job["kind"],
        "name": _name(job),
        "state": _state(job),
        "attempt": job["attempt"],
        "stage": progress.get("stage") if runs else None,
        "evaluation": progress.get("evaluation"),
        "best score": progress.get("best_score"),
        "eta": _eta(progress.get("eta_seconds")) if runs else None,
        "delta": f"{delta['name']}@{delta['version']}, {delta['digest']}" if delta else None,
        **_report(result.get("report")),
        **_points(result.get("curve")),
        "error": error.get("message"),
        "created": time_text(job["created_at"]),
        "updated": time_text(job["updated_at"]),
    }


def _report(report: Record | None) -> dict[str, str | None]:
    """What a compression ended in."""
    if not report:
        return {}
    divergence = report["divergence"]
    return {
        "bytes": f"{size_text(report['num_bytes'])}, {report['ratio']:.1f} times smaller",
        "divergence": None if divergence is None else f"{divergence:.4g}",
    }


def _points(curve: Record | None) -> dict[str, str]:
    """A transfer's curve, a line for each scale."""
    points = curve["points"] if curve else []
    return {
        f"scale {p['scale']:g}": f"target {_number(p['target'])}, retained {_number(p['retained'])}" for p in points
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _eta(seconds: float | None) -> str | None:
    return None if seconds is None else printable(f"{seconds:.0f} s")
