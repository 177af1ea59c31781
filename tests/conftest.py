from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before anything else is

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tests import pico

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`model_folder("llama", dtype=torch.bfloat16)`: made once a session, for reading only."""
    made: dict[tuple[object, ...], Path] = {}

    def make(name: str, **options: object) -> Path:
        key = (name, *sorted(options.items(), key=lambda item: item[0]))
        if key not in made:
            made[key] = pico.MAKERS[name](tmp_path_factory.mktemp(name), **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def finetune_folder(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`finetune_folder("llama", seed=1)`: `pico.perturb` of `model_folder("llama")`, made once a session."""
    made: dict[tuple[object, ...], Path] = {}

    def make(name: str, seed: int = 1, scale: float = 1e-2, **options: object) -> Path:
        key = (name, seed, scale, *sorted(options.items(), key=lambda item: item[0]))
        if key not in made:
            out = tmp_path_factory.mktemp(f"{name}-tuned")
            made[key] = pico.perturb(model_folder(name, **options), out, seed, scale)
        return made[key]

    return make


@pytest.fixture(scope="session")
def llama(model_folder: Callable[..., Path]) -> Path:
    return model_folder("llama")


@pytest.fixture(scope="session")
def llama_tuned(finetune_folder: Callable[..., Path]) -> Path:
    return finetune_folder("llama")
