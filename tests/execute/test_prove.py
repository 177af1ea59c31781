"""The proof holds where rows keep apart, and finds an architecture, or a layer, in which they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.execute import layers
from patchbay.execute.context import Batch
from patchbay.execute.patch import Patcher
from patchbay.execute.prove import Proof, prove
from patchbay.execute.wrap import wrap

ModelFolder = Callable[..., Path]


def proof_of(folder: Path) -> Proof:
    backbone = Backbone.load(folder, device="cpu")
    wrap(backbone)
    found = prove(backbone, Patcher(backbone))
    assert backbone.compute_digest() == backbone.resident_digest
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(pico.MAKERS.keys() - {"t5"}))
def test_architectures_that_run_decoupled(model_folder: ModelFolder, name: str, dtype: torch.dtype) -> None:
    proof = proof_of(model_folder(name, dtype=dtype))
    assert proof.ok and proof.reason is None
    assert proof.error is not None and proof.error < (1e-4 if dtype == torch.float32 else 0.2)
    assert proof.layers["DeltaLinear"] > 0


def test_positions_that_are_embedded_pair_by_pair_are_for_patches(model_folder: ModelFolder) -> None:
    """T5 shares a bias between all rows of the batch, which a delta may change."""
    proof = proof_of(model_folder("t5"))
    assert not proof.ok and proof.error is None
    assert proof.reason is not None and "ids of shape" in proof.reason


def test_which_layers_run_how(model_folder: ModelFolder) -> None:
    assert proof_of(model_folder("vit")).layers == {"DeltaLinear": 13, "DeltaNorm": 5, "PerPlan": 2}
    assert proof_of(model_folder("gpt2")).layers.keys() == {"DeltaConv1D", "DeltaEmbedding", "DeltaLinear", "DeltaNorm"}


def test_a_layer_that_forgets_its_deltas_is_found(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "add_deltas", lambda *_: None)
    proof = proof_of(model_folder("llama"))
    assert not proof.ok and proof.error is not None and proof.error > 0.1
    assert proof.reason is not None and "rounding" in proof.reason


def test_a_layer_that_mixes_up_rows_is_found(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Batch._index
    monkeypatch.setattr(Batch, "_index", lambda batch, rows: index(batch, [batch.num_rows - 1 - row for row in rows]))
    assert not proof_of(model_folder("bert_encoder")).ok
