"""`patchbay export`: a delta or a merge in a form that other tools load."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay.errors import InvalidRecipe
from patchbay_server.commands.bindings import BindingOption, bound_paths, recipe_or_file
from patchbay_server.commands.options import BaseOption, JsonOption
from patchbay_server.commands.output import facts, listing, open_console, print_json, progress, size_text
from patchbay_server.commands.quiet import silence_libraries

if TYPE_CHECKING:
    from patchbay.compress.lora import LoraReport
    from patchbay.compress.merge_files import MergeReport
    from patchbay.compress.merged_model import MergedModel
    from patchbay.compress.overwrite import OverwriteReport
    from patchbay.compress.terms import Progress

    Report = MergeReport | LoraReport | OverwriteReport

RANK = 64


class Format(StrEnum):
    HF = "hf"
    LORA = "lora"
    OVERWRITE = "overwrite"


def export(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME|EXPRESSION|FILE",
            help="A name that --delta binds, an expression of such names, a recipe's .json file, or a delta file.",
            show_default=False,
        ),
    ],
    base: BaseOption,
    format_: Annotated[
        Format,
        typer.Option(
            "--format",
            help="hf: a Hugging Face folder; lora: a PEFT adapter; overwrite: positions and new values of the "
            "entries that change.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must not exist or be empty.")],
    delta: BindingOption = None,
    head: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose classification head travels.", show_default="the only one"),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of the format lora.", show_default=str(RANK))] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a delta or a merge as a model folder, as a LoRA adapter, or as a sparse patch of the base's weights."""
    from patchbay.compress.folder import check_free
    from patchbay.compress.merged_model import open_merge

    if rank is not None and format_ is not Format.LORA:
        raise InvalidRecipe(f"--rank is for the format lora, not for {format_.value}", param="rank")
    silence_libraries()
    check_free(out)
    recipe, paths = recipe_or_file(what, bound_paths(delta))
    with progress("export") as update:
        model = open_merge(base, recipe, paths, head=head, on_progress=update)
        report = _write(model, format_, out, RANK if rank is None else rank, update)
    if as_json:
        print_json({"format": format_.value, **report.to_dict()})
    else:
        _print(report)


def _write(model: MergedModel, format_: Format, out: Path, rank: int, on_progress: Progress) -> Report:
    from patchbay.compress.lora import write_lora
    from patchbay.compress.merge_files import write_folder
    from patchbay.compress.overwrite import write_overwrite

    if format_ is Format.LORA:
        return write_lora(model, out, rank, on_progress)
    return (write_folder if format_ is Format.HF else write_overwrite)(model, out, on_progress)


def _print(report: Report) -> None:
    from patchbay.compress.lora import LoraReport
    from patchbay.compress.overwrite import OverwriteReport

    console = open_console()
    if isinstance(report, LoraReport):
        console.print(_lora_facts(report))
        console.print(_lora_errors(report))
        for name, part in report.lost.items():
            console.print(f"lost: {name}, {part:.2%} of the squared difference", soft_wrap=True)
    elif isinstance(report, OverwriteReport):
        console.print(_overwrite_facts(report))
    else:
        console.print(_folder_facts(report))


def _lora_facts(report: LoraReport) -> object:
    sizes = {"rank": report.rank, "layers": report.layers, "whole modules": report.modules}
    return facts({"adapter": report.path, **sizes, "bytes": size_text(report.bytes)})


def _lora_errors(report: LoraReport) -> object:
    rows = [(kind, f"{error:.4f}") for kind, error in report.errors.items()]
    return listing(("kind", "relative error"), rows, numeric=("relative error",))


def _overwrite_facts(report: OverwriteReport) -> object:
    part = report.changed / max(1, report.entries)
    changed = f"{report.changed:,} of {report.entries:,} entries ({part:.2%}) in {report.tensors} tensors"
    return facts({"patch": report.path, "changed": changed, "bytes": size_text(report.bytes)})


def _folder_facts(report: MergeReport) -> object:
    rows = {"model": report.path, "recipe": report.recipe, "head": report.head, "bytes": size_text(report.bytes)}
    return facts({**rows, "load with": f"transformers.{report.architecture}"})
