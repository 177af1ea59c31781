"""`patchbay compress`: a fine-tuned model -> a delta file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay.errors import InputError, InvalidRecipe
from patchbay_server.commands.options import BaseOption, JsonOption
from patchbay_server.commands.output import facts, open_console, print_json, progress, size_text
from patchbay_server.commands.quiet import silence_libraries

if TYPE_CHECKING:
    from patchbay.compress.compress import Options, Report


def compress(
    base: BaseOption,
    finetuned: Annotated[str, typer.Option(help="The fine-tuned model: a folder or hub id.", metavar="MODEL")],
    out: Annotated[Path, typer.Option(help="The delta file to write.", metavar="FILE")],
    density: Annotated[float, typer.Option(help="Fraction of the matrices' entries that is kept.")] = 0.05,
    values: Annotated[str, typer.Option(help="How kept values are stored: int8, fp32, bf16 or sign.")] = "int8",
    method: Annotated[str, typer.Option(help="Which entries are kept: magnitude or random.")] = "magnitude",
    scale: Annotated[float, typer.Option(help="Multiplies the kept values; with magnitude only.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the random method.")] = 0,
    exact: Annotated[
        bool, typer.Option("--exact", help="Also store the bits of every entry that would not round to the fine-tune.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compress a fine-tuned model to a delta of its base."""
    if out.exists() and not force:
        raise InputError(f"{out} exists already: name another file, or replace it with --force", param="out")
    if method == "random" and scale != 1.0:
        raise InvalidRecipe("the random method rescales by 1/density itself: leave out --scale", param="scale")
    from patchbay.compress.compress import Options

    options = Options(method, density, values, scale, seed, exact)
    report = _run(base, finetuned, out, options)
    if as_json:
        print_json(report.to_dict())
    else:
        open_console().print(_closing_table(report))


def _run(base: str, finetuned: str, out: Path, options: Options) -> Report:
    from patchbay.compress.compress import compress as write_compressed

    silence_libraries()
    with progress("compress") as on_progress:
        return write_compressed(base, finetuned, out, options, on_progress)


def _closing_table(report: Report) -> object:
    return facts(
        {
            "delta": report.path,
            "bytes": size_text(report.num_bytes),
            "fine-tune": size_text(report.original_bytes),
            "ratio": f"{report.ratio:.1f} (the fine-tune's weight files over the delta)",
            "bits per parameter": f"{report.bits_per_parameter:.3f}",
            "density": f"{report.density:g}",
            "relative error": f"{report.relative_error:.4g}",
            "seconds": f"{report.seconds:.1f}",
        }
    )
