"""`patchbay merge`: a recipe and its deltas -> an ordinary model folder, without a server."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay_server.commands.bindings import BindingOption, bound_paths
from patchbay_server.commands.options import BaseOption, JsonOption
from patchbay_server.commands.output import facts, open_console, print_json, progress, size_text
from patchbay_server.commands.quiet import silence_libraries

if TYPE_CHECKING:
    import torch

    from patchbay.compress.merge_files import MergeReport


class Dtype(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def merge(
    recipe: Annotated[
        str,
        typer.Argument(
            help="An expression, as `ties(a, b; density=0.2)`, or a file: a recipe's .json, mergekit's .yaml.",
            show_default=False,
        ),
    ],
    base: BaseOption,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR|FILE", help="The folder to write, or with the suffix .safetensors the weights alone."
        ),
    ],
    delta: BindingOption = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whose classification head travels, where several terms bring one.",
            show_default="the recipe's",
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Of the weights that are written.", show_default="the document's, or else the base's"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge deltas, or whole fine-tuned models, into a model folder: the weights that a server would answer with.

    Tensor by tensor: a model need not fit into memory.
    """
    from patchbay.compress.folder import check_free
    from patchbay.compress.merge_files import SUFFIX, write_merge
    from patchbay.compress.merged_model import open_merge
    from patchbay.merge.read import read_recipe

    silence_libraries()
    check_free(out, is_file=out.suffix == SUFFIX)
    paths, read = bound_paths(delta), read_recipe(recipe)
    with progress("merge") as update:
        written = _torch_dtype(dtype) or read.dtype
        model = open_merge(base, read.recipe, paths, head=head, dtype=written, on_progress=update)
        report = write_merge(model, out, update)
    if as_json:
        print_json(report.to_dict())
    else:
        open_console().print(_table(report))


def _torch_dtype(dtype: Dtype | None) -> torch.dtype | None:
    import torch

    names = {Dtype.FP32: torch.float32, Dtype.BF16: torch.bfloat16, Dtype.FP16: torch.float16}
    return None if dtype is None else names[dtype]


def _table(report: MergeReport) -> object:
    return facts(
        {
            "model": report.path,
            "recipe": report.recipe,
            "head": report.head,
            "tensors": report.tensors,
            "bytes": size_text(report.bytes),
            "load with": f"transformers.{report.architecture}",
        }
    )
