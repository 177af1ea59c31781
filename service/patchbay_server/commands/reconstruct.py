"""`patchbay reconstruct`: base + delta -> an ordinary model folder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from patchbay_server.commands.options import BaseOption, DeltaArgument, JsonOption
from patchbay_server.commands.output import print_json, printable, progress
from patchbay_server.commands.quiet import silence_libraries


def reconstruct(
    delta: DeltaArgument,
    base: BaseOption,
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist or be empty.", metavar="DIR")],
    as_json: JsonOption = False,
) -> None:
    """Write the fine-tuned model that a delta stands for, as a normal Hugging Face folder."""
    from patchbay.compress.reconstruct import reconstruct as write_folder

    silence_libraries()
    with progress("reconstruct") as on_progress:
        write_folder(delta, base, out, on_progress)
    names = json.loads((out / "config.json").read_text("utf-8")).get("architectures") or ["AutoModel"]
    num_bytes = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    if as_json:
        print_json({"path": str(out), "architecture": names[0], "bytes": num_bytes})
    else:
        print(_what_next(out, printable(names[0])))


def _what_next(out: Path, architecture: str) -> str:
    folder = printable(out)
    return (
        f"{folder} is an ordinary model folder. Load it in Python:\n"
        f"  from transformers import {architecture}\n"
        f"  model = {architecture}.from_pretrained({folder!r})\n"
        "or serve it as a base of its own:\n"
        f"  patchbay serve --base {shlex.quote(folder)}"
    )
