from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from patchbay.backbone import Backbone


@pytest.fixture(scope="session")
def backbone(model_folder: Callable[..., Path]) -> Callable[..., Backbone]:
    """`backbone("vit", seed=1)`: the pico model, resident; loaded once a session, for reading only."""
    loaded: dict[Path, Backbone] = {}

    def load(kind: str, **options: object) -> Backbone:
        folder = model_folder(kind, **options)
        if folder not in loaded:
            loaded[folder] = Backbone.load(folder)
        return loaded[folder]

    return load
