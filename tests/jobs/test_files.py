"""Which of a folder's files make up a model: what is sent to a server, and what a search's record depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from patchbay.errors import UnsupportedBackbone
from patchbay_server.jobs.files import model_files

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def tuned(finetune_folder: Callable[..., Path]) -> Path:
    return finetune_folder("bert_classifier")


def test_only_the_models_files(tuned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    folder.mkdir()
    for file in tuned.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    extras = (
        "optimizer.bin",
        "notes.md",
        ".hidden.json",
        "two words.json",
        "other.safetensors",
    )
    for extra in extras:
        (folder / extra).write_bytes(b"x")
    (folder / "folder.json").mkdir()
    found = model_files(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= found.keys()
    assert not found.keys() & {*extras, "folder.json"}
    assert all(file == folder / name and file.is_file() for name, file in found.items())


def test_an_adapter_is_its_own_files_and_no_models(tmp_path: Path) -> None:
    for name in (*ADAPTER, "optimizer.bin", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    assert tuple(model_files(tmp_path)) == ADAPTER


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_what_is_no_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedBackbone):
        model_files(tmp_path / name)
