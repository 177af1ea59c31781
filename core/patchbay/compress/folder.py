"""What an ordinary Hugging Face folder holds beside weights, and how a folder or a file comes into being at once.

Knows nothing of deltas and merges.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from patchbay.delta.manifest import Token
from patchbay.errors import InputError

# What a model shares with the one that it was made from. That one's model card and pooling modules would be false.
COMPANIONS = (
    "tokenizer",
    "vocab",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece",
    "spiece",
    "generation_config.json",
    "chat_template",
    "preprocessor_config.json",
    "processor_config.json",
)


def check_free(out: Path, *, is_file: bool = False) -> None:
    """Raises InputError where `out` exists: of a folder, where it is not an empty one."""
    if is_file and out.exists():
        raise InputError(f"{out} exists already: name another file", param="out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder", param="out")


@contextmanager
def unfinished_folder(out: Path) -> Iterator[Path]:
    """A folder on `out`'s disk that gets `out`'s name when everything in it has been written.

    Raises InputError as `check_free` does.
    """
    check_free(out)
    with beside(out) as folder:
        unfinished = folder / "model"
        unfinished.mkdir()
        yield unfinished
        unfinished.replace(out)


@contextmanager
def unfinished_file(out: Path) -> Iterator[Path]:
    """The same for a file."""
    check_free(out, is_file=True)
    with beside(out) as folder:
        yield folder / "file"
        (folder / "file").replace(out)


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A temporary folder on `out`'s disk. Folders that were made for it go again where something fails."""
    made = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            yield Path(folder)
    except BaseException:
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def write_config(config: Mapping[str, Any], out: Path) -> None:
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def copy_companions(source: Path, tokens: Sequence[Token], out: Path) -> None:
    """Tokenizer and preprocessor files, with `tokens` added. Behind config.json, which the tokenizer asks."""
    for file in source.iterdir():
        if file.is_file() and file.name.startswith(COMPANIONS):
            shutil.copyfile(file, out / file.name)
    if tokens:
        tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=False, local_files_only=True)
        for token in tokens:
            tokenizer.add_tokens([token.content], special_tokens=token.special)
        tokenizer.save_pretrained(out)
