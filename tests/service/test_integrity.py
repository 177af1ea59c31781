"""What an idle server finds wrong in its memory is told to probes and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tests import pico
from tests.service.serving import assert_error, ok, serving

from patchbay.backbone import Backbone
from patchbay.engine.integrity import tensors_of
from patchbay_server.residents import resident


def flip(tensor: torch.Tensor) -> None:
    tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)[0] ^= 1


def test_a_changed_delta_is_loaded_again_and_a_changed_base_is_not_ready(
    model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    base = model_folder("bert_classifier")
    file = pico.delta_file(base, finetune_folder("bert_classifier"), tmp_path / "math.safetensors")
    with serving(Backbone.load(base), tmp_path / "store", check_seconds=0) as served:
        digest = resident("default", served.upload("math", file)["digest"])
        before = served.probabilities("math", ["the cat"])
        checks = served.engine.integrity
        for _ in checks.steps():
            pass
        flip(next(tensors_of(served.engine.recipes.deltas.peek(digest))))
        for _ in checks.steps():
            pass
        assert served.engine.recipes.deltas.peek(digest) is None
        assert served.probabilities("math", ["the cat"]).equal(before)
        assert ok(served.get("/readyz"))["status"] == "ready"
        flip(served.backbone.tensor(next(iter(served.backbone.specs))))
        for _ in checks.steps():
            pass
        for refused in (served.get("/readyz"), served.post("/v1/classify", {"model": "base", "input": ["the cat"]})):
            assert_error(refused, 500, "backbone_error")
        metrics = served.get("/metrics").text
        assert "patchbay_integrity_rounds_total 3.0" in metrics
        assert "patchbay_integrity_failures_total 2.0" in metrics
