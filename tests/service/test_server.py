"""What a server checks before it listens: that the store it was given is its base's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests import pico
from tests.service.serving import serving

from patchbay.backbone import Backbone
from patchbay.errors import CacheFull, InvalidName, NotFound, WrongBase
from patchbay_server.pins import preload
from patchbay_server.residents import resident
from patchbay_server.server import check_store, open_engine, open_hub
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


def test_memory_and_limits_are_the_settings(model_folder: ModelFolder, tmp_path: Path) -> None:
    backbone = Backbone.load(model_folder("llama"))
    sizes = {"kv_bytes": 3 << 20, "prefix_bytes": 1 << 18, "plan_cache_bytes": 7, "delta_cache_bytes": 11}
    limits = {"max_running": 3, "max_step_tokens": 17, "max_waiting": 5}
    with serving(backbone, tmp_path, **sizes, **limits) as served:
        language, recipes = served.engine.language, served.engine.recipes
        assert (recipes.plans.max_bytes, recipes.deltas.max_bytes) == (7, 11)
        found = language.generator.scheduler.limits
        assert (found.max_running, found.max_step, found.max_waiting) == (3, 17, 5)
        per_token = backbone.model.config.num_hidden_layers * 2 * 4 * kv_width(backbone)
        assert language.memory.budget_tokens == (3 << 20) // per_token
        prefixes = language.generator._prefixes
        assert prefixes is not None and prefixes.max_blocks == (1 << 18) // (32 * per_token)


def kv_width(backbone: Backbone) -> int:
    config = backbone.model.config
    return int(config.num_key_value_heads * config.head_dim)


def test_what_is_preloaded_is_pinned_before_anybody_asks(filled: tuple[Settings, Backbone]) -> None:
    settings, backbone = filled
    hub = open_hub(settings, backbone.name)
    engine = open_engine(settings, backbone, hub)
    digest = hub.catalog.get_delta("default", "math").digest
    preload(engine, hub, ["math", "math@1"])
    assert engine.recipes.is_pinned(resident("default", digest))
    preload(engine, hub, ["default/math@1"])
    for name in ("nope", "math@2", "math@x", "other/math", "/math", "a/b/c"):
        with pytest.raises(NotFound):
            preload(engine, hub, [name])
    small = open_engine(settings.model_copy(update={"delta_cache_bytes": 10}), backbone, hub)
    with pytest.raises(CacheFull, match="--delta-cache-bytes"):
        preload(small, hub, ["math"])
