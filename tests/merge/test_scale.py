from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.execute.patch import Patcher
from patchbay.merge import CanonicalRecipe, build
from patchbay.merge.scale import LEAST, MOST, scaled, search_scale


@pytest.mark.parametrize("best", [0.11, 0.2, 0.3, 0.7, 1.0, 1.9, 3.0])
def test_a_scale_is_found_coarse_to_fine(best: float) -> None:
    """Within a factor of the fourth root of 2 of the best one, where the limits allow."""
    tried = search_scale(lambda scale: abs(scale / best - 1) + abs(best / scale - 1))
    found = min(tried, key=lambda scale: tried[scale])
    assert len(tried) <= 7
    assert all(LEAST <= scale <= MOST for scale in tried)
    assert found == pytest.approx(min(max(best, 0.125), MOST), rel=2**0.25 - 1 + 1e-9)
    assert 1.0 in tried


@pytest.mark.parametrize("method", ["task_arithmetic", "neuromerging", "ties"])
def test_a_merge_at_a_scale_is_what_a_recipe_of_that_scale_gives(
    method: str, model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    base = model_folder("llama")
    backbone = Backbone.load(base)
    deltas = [
        pico.delta(base, finetune_folder("llama", seed=seed), tmp_path / f"{seed}", density=0.3) for seed in (1, 2)
    ]

    def weights(scale: float, then: float) -> dict[str, torch.Tensor]:
        recipe = CanonicalRecipe(method, (("a", 1.0), ("b", 0.5)), scale, (), None)
        merged = scaled(build(recipe, deltas, backbone), then)
        with Patcher(backbone).patched(merged.plan, merged.deltas(deltas)):
            return {name: backbone.tensor(name).clone() for name in backbone.specs}

    found, expected = weights(1.0, 0.3), weights(0.3, 1.0)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_a_delta_at_another_scale_has_no_exceptions(
    model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    base = model_folder("llama")
    delta = pico.delta(base, finetune_folder("llama"), tmp_path / "d", density=0.3)
    merged = build(CanonicalRecipe("task_arithmetic", (("a", 1.0),), 1.0, (), None), [delta], Backbone.load(base))
    assert scaled(merged, 1).plan.exact and not scaled(merged, 0.5).plan.exact
