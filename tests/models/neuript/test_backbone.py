"""NeurIPT as a backbone like any other; what holds for all of them is in their own tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.engine.encoding import recipe
from tests.models.neuript.test_model import NAMES, signal

from patchbay.architecture import Kind, Task
from patchbay.backbone import Backbone
from patchbay.compress.reconstruct import reconstruct
from patchbay.delta import Delta
from patchbay.engine.engine import Engine
from patchbay.engine.joint import Part
from patchbay.errors import InputError
from patchbay.models.classifier import Logits
from patchbay.models.inputs import ArrayInput
from patchbay.models.neuript import Montage, NeurIPTConfig, NeurIPTForEEGClassification, NeurIPTForPreTraining

Folder = Callable[..., Path]


def inputs(rows: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    montage = Montage.of(NAMES[:6])
    at, lobes = montage.positions.expand(rows, -1, -1), montage.lobes.expand(rows, -1, -1)
    return {"signal": signal(rows, 6, 64, seed), "positions": at, "lobes": lobes}


def test_it_is_loaded_as_what_it_is(model_folder: Folder) -> None:
    backbone = Backbone.load(model_folder("neuript"))
    assert backbone.task is Task.EEG_CLASSIFICATION and backbone.labels == pico.LABELS
    kinds = {spec.name: spec.kind for spec in backbone.specs.values()}
    assert kinds["neuript.blocks.1.time.feed.experts.1.up.weight"] is Kind.LINEAR
    assert kinds["neuript.blocks.0.time.attention_norm.weight"] is Kind.NORM
    heads = {spec.name for spec in backbone.specs.values() if spec.is_head}
    assert heads == {"classifier.weight", "classifier.bias"}


def test_a_pre_trained_folder_is_an_encoder(tmp_path: Path) -> None:
    NeurIPTForPreTraining(NeurIPTConfig.of_size("test")).save_pretrained(tmp_path)
    backbone = Backbone.load(tmp_path)
    assert backbone.task is Task.EMBEDDING
    assert any(name.startswith("decoder.") for name in backbone.architecture.unused)


def test_what_is_no_recording(model_folder: Folder) -> None:
    engine = Engine(Backbone.load(model_folder("neuript")), {}.__getitem__)
    for given in ("the cat", ArrayInput([[0.0]])):
        with pytest.raises(InputError, match="takes recordings"):
            engine.classify(engine.prepare(None), [given], {}, None)


def test_every_size_runs_several_deltas_at_once(tmp_path: Path) -> None:
    """The proof at load: experts see each row's tokens in that row, and projections have rows in front."""
    torch.manual_seed(0)
    NeurIPTForEEGClassification(NeurIPTConfig.of_size("small")).save_pretrained(tmp_path)
    engine = Engine(Backbone.load(tmp_path), {}.__getitem__)
    assert engine.proof.ok, engine.proof.reason
    assert engine.proof.layers.keys() == {"DeltaLinear", "DeltaNorm"}
    assert engine.encoders.why_alone(Logits(engine.backbone.model)) is None


def test_windows_of_several_deltas_share_a_forward_pass(
    model_folder: Folder, finetune_folder: Folder, tmp_path: Path
) -> None:
    base = model_folder("neuript")
    deltas: dict[str, Delta] = {}
    wholes = []
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        file = pico.delta_file(base, finetune_folder("neuript", seed, 0.05), tmp_path / name, density=0.3)
        reconstruct(file, base, tmp_path / f"whole-{name}")
        wholes.append(NeurIPTForEEGClassification.from_pretrained(tmp_path / f"whole-{name}").eval())
        deltas[name] = pico.delta(base, finetune_folder("neuript", seed, 0.05), tmp_path / f"{name}2", density=0.3)
    wholes.append(NeurIPTForEEGClassification.from_pretrained(base).eval())
    engine = Engine(Backbone.load(base), deltas.__getitem__)
    ready = [engine.prepare(recipe(name)) for name in (*deltas, None)]
    asked = [inputs(1 + number % 2, number) for number in range(4)]
    readout = Logits(engine.backbone.model)
    with torch.inference_mode():
        parts = [Part(each, one.active, readout) for each, one in zip(asked, ready, strict=True)]
        found = engine.encoders._joint.together(parts)
        for answer, each, whole in zip(found, asked, wholes, strict=True):
            torch.testing.assert_close(answer, whole(**each).logits, atol=1e-4, rtol=1e-4)
            assert whole is wholes[3] or float((answer - wholes[3](**each).logits).abs().max()) > 0.01
    assert engine.verify().ok
