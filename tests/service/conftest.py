from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests import pico
from tests.service.serving import Serve, Served, serving
from transformers import ViTImageProcessor

from patchbay.backbone import Backbone

DENSITY = 0.3


@pytest.fixture(scope="session")
def backbone(model_folder: Callable[..., Path]) -> Callable[[str], Backbone]:
    """`backbone("vit")`: the pico model, resident; loaded once a session."""
    loaded: dict[str, Backbone] = {}

    def load(kind: str) -> Backbone:
        if kind not in loaded:
            loaded[kind] = Backbone.load(model_folder(kind))
        return loaded[kind]

    return load


@pytest.fixture(scope="session")
def delta_file(
    model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`delta_file("vit", 1)`: the fine-tune with that seed as a delta; made once a session."""
    made: dict[tuple[str, int], Path] = {}

    def make(kind: str, seed: int = 1) -> Path:
        if (kind, seed) not in made:
            out = tmp_path_factory.mktemp("delta") / f"{kind}-{seed}.safetensors"
            tuned = finetune_folder(kind, seed, scale=0.05)
            made[kind, seed] = pico.delta_file(model_folder(kind), tuned, out, density=DENSITY)
        return made[kind, seed]

    return make


@pytest.fixture
def serve(backbone: Callable[[str], Backbone], tmp_path: Path) -> Iterator[Serve]:
    """`serve("vit")`: an app over that base with an empty store; settings as keywords."""
    numbers = itertools.count()
    with ExitStack() as stack:

        def start(base: str | Backbone, **settings: Any) -> Served:
            resident = backbone(base) if isinstance(base, str) else base
            return stack.enter_context(serving(resident, tmp_path / f"store-{next(numbers)}", **settings))

        yield start


@pytest.fixture
def vit(serve: Serve, delta_file: Callable[..., Path]) -> Served:
    """An image classifier with two deltas, `math` and `code`."""
    return _with_two_deltas(serve, delta_file, "vit")


@pytest.fixture
def llama(serve: Serve, delta_file: Callable[..., Path]) -> Served:
    """A language model with two deltas, `math` and `code`."""
    return _with_two_deltas(serve, delta_file, "llama")


@pytest.fixture
def encoder(serve: Serve, delta_file: Callable[..., Path]) -> Served:
    """An embedding model with two deltas, `math` and `code`."""
    return _with_two_deltas(serve, delta_file, "bert_encoder")


@pytest.fixture(scope="session")
def camera(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The image classifier with a preprocessor, so that it takes PNG and JPEG."""
    folder = pico.rewrite(model_folder("vit"), tmp_path_factory.mktemp("models") / "camera", lambda tensors: tensors)
    ViTImageProcessor(size={"height": pico.IMAGE, "width": pico.IMAGE}).save_pretrained(folder)
    return Backbone.load(folder)


def _with_two_deltas(serve: Serve, delta_file: Callable[..., Path], kind: str) -> Served:
    served = serve(kind)
    served.upload("math", delta_file(kind, 1))
    served.upload("code", delta_file(kind, 2))
    return served
