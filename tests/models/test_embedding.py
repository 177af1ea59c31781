from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.errors import NonFiniteValue
from patchbay.models.embedding import Embedded, UnitVectors, embedded
from patchbay.models.inputs import Batch, Inputs

TEXTS = ["the cat", "a dog runs and sees my film", "good"]
PIXELS = torch.randn(3, 3, pico.IMAGE, pico.IMAGE, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def embed(base: Backbone, batch: Batch) -> Embedded:
    return embedded(UnitVectors(base.model).whole(batch), batch)


@torch.inference_mode()
def test_a_text_is_the_mean_of_its_own_tokens(backbone: Callable[..., Backbone]) -> None:
    base = backbone("bert_encoder")
    batch = Inputs(base).batch(TEXTS)
    found = embed(base, batch)
    states = base.model(**batch).last_hidden_state
    for row, state, mask in zip(found.vectors, states, batch["attention_mask"], strict=True):
        mean = state[mask.bool()].double().mean(0)
        torch.testing.assert_close(row.double(), mean / mean.norm(), atol=1e-6, rtol=0)
    assert found.num_tokens == int(batch["attention_mask"].sum()) == 10
    assert found.vectors.dtype == torch.float32


@torch.inference_mode()
def test_an_encoder_without_a_pooler(backbone: Callable[..., Backbone]) -> None:
    base = backbone("bert_encoder", pooler=False)
    assert embed(base, Inputs(base).batch(TEXTS)).vectors.shape == (3, pico.HIDDEN)


@torch.inference_mode()
def test_an_image_is_the_pooled_output(backbone: Callable[..., Backbone]) -> None:
    base = backbone("clip_vision")
    pooled = base.model(pixel_values=PIXELS).pooler_output.double()
    found = embed(base, {"pixel_values": PIXELS})
    expected = pooled / pooled.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found.vectors.double(), expected, atol=1e-6, rtol=0)
    assert found.num_tokens == 0


def test_vectors_have_length_one_also_in_bf16(backbone: Callable[..., Backbone]) -> None:
    base = backbone("bert_encoder", dtype=torch.bfloat16)
    vectors = embed(base, Inputs(base).batch(TEXTS)).vectors
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))


def test_vectors_that_are_not_finite(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    def broken(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["embeddings.LayerNorm.bias"][0] = float("nan")
        return tensors

    base = Backbone.load(pico.rewrite(model_folder("bert_encoder"), tmp_path / "broken", broken))
    with pytest.raises(NonFiniteValue, match="not finite"):
        embed(base, Inputs(base).batch(TEXTS))
