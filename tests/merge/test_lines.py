from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tests import pico
from tests.merge.test_merged import patched, recipe_of

from patchbay.backbone import Backbone
from patchbay.merge.settings import layer_of


def test_deep_layers_change_more(
    model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    base = Backbone.load(model_folder("llama", layers=3))
    delta = pico.delta(base.folder, finetune_folder("llama", layers=3), tmp_path / "d", density=1.0, values="fp32")
    under = patched(base, [delta], recipe_of("lines", (2.0,), alpha=0.25, beta=0.5))
    seen = set()
    for name, tensor in under.items():
        layer = layer_of(name)
        share = 0.25 + (0.25 * layer[1] if layer else 0.0)
        seen.add(share)
        expected = base.stored(name) + 2.0 * share * delta.difference(name)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6, msg=name)
    assert seen == {0.25, 0.5, 0.75}
