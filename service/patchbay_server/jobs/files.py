"""A job's files: which of a folder make up a model, which names they may have, and how blobs become a folder again."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from patchbay.checkpoint import Checkpoint, resolve_folder
from patchbay.errors import InputError, NotFound, UnsupportedFile
from patchbay.store.base import Digest
from patchbay.store.hub import PUBLISHING_S, Hub

SUFFIXES = ("json", "safetensors", "txt", "model", "jinja", "npy")
PICKLES = ("bin", "pt", "pth", "pkl", "pickle", "ckpt")
CONFIGS = ("config.json", "adapter_config.json")
"""Of a whole model, and of a PEFT adapter."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_NUMPY = b"\x93NUMPY"


def is_model_file(name: str) -> bool:
    stem, dot, suffix = name.rpartition(".")
    return _NAME.fullmatch(name) is not None and bool(stem) and suffix in SUFFIXES


def model_files(source: str | Path) -> dict[str, Path]:
    """By name, what makes up a model or an adapter: its weights, configuration and tokenizer.

    Whatever else lies in its folder is left out. Raises UnsupportedBackbone.
    """
    folder = resolve_folder(source)
    files = {file for file in folder.iterdir() if file.is_file() and is_model_file(file.name)}
    if not (folder / CONFIGS[1]).is_file():  # an adapter has no weights but those in its folder
        used = {stored.file for stored in Checkpoint.open(folder).tensors.values()}
        files = used | {file for file in files if file.suffix != ".safetensors"}
    return {file.name: file for file in sorted(files)}


def check_filename(name: str) -> str:
    """Return `name` if it is a plain file's name with a suffix of SUFFIXES.

    Raises UnsupportedFile for pickles, InputError for the rest.
    """
    suffix = name.rpartition(".")[2].lower()
    if suffix in PICKLES:
        raise UnsupportedFile(
            f"{name[:80]!r} can carry code and is never opened: load it once where you trust it and save_pretrained it "
            "as safetensors",
            param="files",
        )
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name[:80]!r} is not a plain file name: use letters, digits, '.', '_' and '-', and no folders",
            param="files",
        )
    if not is_model_file(name):
        raise InputError(f"{name[:80]!r} is none of a model's files: those end in {', '.join(SUFFIXES)}", param="files")
    return name


def check_model(names: Iterable[str]) -> None:
    """Raises InputError unless the files can be a model or an adapter: a configuration, and weights in safetensors."""
    known = set(map(check_filename, names))
    if not known.intersection(CONFIGS):
        raise InputError(f"the files lack {CONFIGS[0]}: name all files of the model's folder", param="files")
    if not any(name.endswith(".safetensors") for name in known):
        raise InputError("the files lack weights: name at least one .safetensors file", param="files")


def check_blobs(hub: Hub, tenant: str, wanted: Mapping[str, Digest | None]) -> None:
    """`wanted`: what it is for -> its blob, if one is named; it is kept until a job is queued that reads it.

    Raises NotFound for the first one that the tenant has not brought.
    """
    for what, digest in wanted.items():
        if digest is None:
            continue
        hub.catalog.hold(digest, PUBLISHING_S)
        if not hub.has_blob(tenant, digest):
            raise NotFound(f"{what} is not on the server: PUT /v1/blobs/{digest} first", param=what)


def lay_out(hub: Hub, files: Mapping[str, Digest], folder: Path) -> Path:
    """Makes `folder` with the blobs under these names: hard links where the file system has them, else copies."""
    folder.mkdir()
    for name, digest in files.items():
        _link(hub.open_blob(digest), folder / check_filename(name))
    return folder


def lay_out_calibration(hub: Hub, digest: Digest, folder: Path) -> Path:
    """The calibration inputs as `.npy`, `.safetensors` or `.txt`, by their first bytes: a blob has no name."""
    blob = hub.open_blob(digest)
    target = folder / f"calibration.{_suffix(blob)}"
    _link(blob, target)
    return target


def _suffix(file: Path) -> str:
    with file.open("rb") as opened:
        head = opened.read(9)
    if head.startswith(_NUMPY):
        return "npy"
    # safetensors: the header's length, then the header. As a length, eight letters are more than any file has bytes.
    is_container = head[8:] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size
    return "safetensors" if is_container else "txt"


def _link(blob: Path, target: Path) -> None:
    try:
        os.link(blob, target)
    except OSError:
        shutil.copyfile(blob, target)
