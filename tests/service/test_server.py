"""What a server checks before it listens: that the store it was given is its base's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests import pico
from tests.service.serving import serving

from patchbay.backbone import Backbone
from patchbay.errors import InvalidName, WrongBase
from patchbay_server.server import check_store, open_hub
from patchbay_server.settings import Settings

ModelFolder = Callable[..., Path]


@pytest.fixture
def filled(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> tuple[Settings, Backbone]:
    """A store with one delta of the pico ViT."""
    backbone = Backbone.load(model_folder("vit"))
    file = tmp_path / "math.safetensors"
    pico.delta_file(model_folder("vit"), finetune_folder("vit"), file)
    with serving(backbone, tmp_path / "store") as served:
        served.upload("math", file)
        return served.app.state.settings, backbone


def test_its_own_store(filled: tuple[Settings, Backbone]) -> None:
    settings, backbone = filled
    assert check_store(open_hub(settings, backbone.name), backbone) == []


def test_the_store_of_another_base(filled: tuple[Settings, Backbone], model_folder: ModelFolder) -> None:
    settings, _ = filled
    other = Backbone.load(model_folder("vit", seed=5))
    with pytest.raises(WrongBase, match="'math', a delta of another base"):
        check_store(open_hub(settings, other.name), other)


def test_a_base_named_like_a_delta(filled: tuple[Settings, Backbone], tmp_path: Path) -> None:
    settings, backbone = filled
    renamed = tmp_path / "copy" / "math"
    pico.reconfigure(backbone.folder, renamed)
    base = Backbone.load(renamed)
    with pytest.raises(InvalidName, match="'math'"):
        check_store(open_hub(settings, base.name), base)


def test_bytes_that_are_elsewhere(filled: tuple[Settings, Backbone]) -> None:
    settings, backbone = filled
    hub = open_hub(settings, backbone.name)
    for digest in hub.blobs.digests():
        hub.blobs.delete(digest)
    assert check_store(hub, backbone) == ["math"]
