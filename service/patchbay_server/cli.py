"""`patchbay`, the command line. Exit codes and their reasons: `commands/failures.py`.

Heavy imports stay inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

import patchbay
from patchbay_server.commands.audit import audit
from patchbay_server.commands.catalog import ls, rm, show
from patchbay_server.commands.compress import compress
from patchbay_server.commands.demo import demo
from patchbay_server.commands.export import export
from patchbay_server.commands.failures import explain
from patchbay_server.commands.fuse import fuse
from patchbay_server.commands.inspect import inspect
from patchbay_server.commands.jobs import jobs
from patchbay_server.commands.keys import keys
from patchbay_server.commands.merge import merge
from patchbay_server.commands.neuript import neuript
from patchbay_server.commands.options import JSON_KEY
from patchbay_server.commands.output import print_json, printable
from patchbay_server.commands.push import push
from patchbay_server.commands.reconstruct import reconstruct
from patchbay_server.commands.serve import serve
from patchbay_server.commands.store import store
from patchbay_server.commands.tenants import tenants
from patchbay_server.commands.transfer import transfer
from patchbay_server.commands.tune import tune
from patchbay_server.commands.verify import verify
from patchbay_server.commands.worker import worker

# Wrong usage, `--help` and a reader of our output that went away: typer has their messages and exit codes.
_TYPERS_OWN = (TyperException, typer.Exit, typer.Abort, BrokenPipeError)


class Commands(TyperGroup):
    """Runs one command. Whatever ends it becomes one sentence on stderr and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _TYPERS_OWN:
            raise
        except (Exception, KeyboardInterrupt) as error:
            failure = explain(error)
            if sys.flags.dev_mode and failure.code == "internal_error":
                raise
            print("error: " + "\n".join(map(printable, failure.message.split("\n"))), file=sys.stderr)
            if ctx.meta.get(JSON_KEY):
                print_json(failure.to_dict())
            raise typer.Exit(failure.exit_code) from None


app = typer.Typer(
    name="patchbay",
    cls=Commands,
    help="Serve many fine-tuned models from one resident base: as small deltas, merged per request.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"patchbay {patchbay.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which it is, and exit.")
    ] = False,
) -> None:
    """Options of `patchbay` itself."""


OFFLINE = (compress, fuse, merge, tune, export, transfer, inspect, verify, reconstruct)
for command in (*OFFLINE, serve, push, ls, show, rm, worker, audit, demo):
    app.command()(command)
app.add_typer(jobs)
app.add_typer(keys)
app.add_typer(neuript)
app.add_typer(store)
app.add_typer(tenants)


def main() -> None:
    app(prog_name="patchbay")


if __name__ == "__main__":
    main()
