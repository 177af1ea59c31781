"""`patchbay fuse`: several delta files of one base -> one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay.errors import InputError, InvalidRecipe
from patchbay_server.commands.options import BaseOption, JsonOption
from patchbay_server.commands.output import facts, open_console, print_json, progress, size_text
from patchbay_server.commands.quiet import silence_libraries

if TYPE_CHECKING:
    from patchbay.compress.fuse_files import FusionReport


def fuse(
    base: BaseOption,
    delta: Annotated[list[Path], typer.Option(metavar="DELTA", help="A delta file; give the option for each.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The delta file to write.")],
    lambda_: Annotated[
        float | None, typer.Option("--lambda", show_default="1", help="The weight of all deltas, -10 to 10.")
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="In place of --lambda: one for each --delta, in their order.")
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DELTA=FILE", help="Inputs of one delta's task, for each: starts a search of the weights."
        ),
    ] = None,
    evaluations: Annotated[int, typer.Option(help="Of the search, at most.")] = 40,
    head: Annotated[
        str | None, typer.Option(metavar="DELTA", help="Whose classification head to take along.", show_default="none")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fuse deltas into one: each entry is the weighted sum over those that kept it, divided by their number.

    A delta is called by its file's name without the suffix, or by its path as given.
    """
    if out.exists() and not force:
        raise InputError(f"{out} exists already: name another file, or replace it with --force", param="out")
    if lambda_ is not None and weight:
        raise InvalidRecipe("--lambda is for all deltas and --weight for each: give one of them", param="weight")
    files = _named(delta)
    inputs = _inputs(files, calibration or [])
    lambdas = weight or ([lambda_] * len(files) if lambda_ is not None else None)
    report = _run(base, files, out, lambdas, inputs, evaluations, _name_of(files, head, "head") if head else None)
    if as_json:
        print_json(report.to_dict())
    else:
        open_console().print(_closing_table(report))
        if head is None and any(map(_brings_head, files.values())):
            open_console().print("it has no head: to classify with it, fuse again with --head DELTA", soft_wrap=True)


def _run(
    base: str,
    files: Mapping[str, Path],
    out: Path,
    lambdas: Sequence[float] | None,
    inputs: Mapping[str, Path],
    evaluations: int,
    head: str | None,
) -> FusionReport:
    from patchbay.compress.calibration import Calibration
    from patchbay.compress.fuse_files import fuse_files

    silence_libraries()
    calibrations = {name: Calibration.read(file) for name, file in inputs.items()}
    with progress("fuse") as update:
        return fuse_files(
            base,
            files,
            out,
            lambdas=lambdas,
            calibrations=calibrations,
            evaluations=evaluations,
            head=head,
            on_progress=update,
        )


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """By the file's name without its suffix, or by the path where two files have one name."""
    twice = {stem for stem, count in Counter(path.stem for path in paths).items() if count > 1}
    files = {str(path) if path.stem in twice else path.stem: path for path in paths}
    if len(files) < len(paths):
        raise InvalidRecipe("the same delta is given twice: give it once, with a larger weight", param="delta")
    return files


def _name_of(files: Mapping[str, Path], text: str, param: str) -> str:
    found = [name for name, path in files.items() if text in (name, str(path))]
    if not found:
        raise InvalidRecipe(f"{text!r} is none of the deltas: {', '.join(files)}", param=param)
    return found[0]


def _inputs(files: Mapping[str, Path], texts: Sequence[str]) -> dict[str, Path]:
    inputs: dict[str, Path] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals:
            raise InvalidRecipe(f"{text!r} is not DELTA=FILE: say which delta's inputs they are", param="calibration")
        known = _name_of(files, name, "calibration")
        if known in inputs:
            raise InvalidRecipe(f"{known!r} has two calibration files: give one", param="calibration")
        inputs[known] = Path(file)
    return inputs


def _brings_head(file: Path) -> bool:
    from patchbay.delta import DeltaFile

    return any(entry.kind == "added" for entry in DeltaFile.open(file).manifest.tensors.values())


def _closing_table(report: FusionReport) -> object:
    return facts(
        {
            "delta": report.path,
            "bytes": size_text(report.num_bytes),
            "lambdas": ", ".join(f"{name} {number:g}" for name, number in report.lambdas.items()),
            "density": f"{report.density:g}",
            "evaluations": report.evaluations or None,
            "best score": None if report.score is None else f"{report.score:.4g} (minus the mean divergence)",
        }
    )
