from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.errors import NonFiniteValue, UnsupportedTask
from patchbay.models.classifier import Classification, Logits, check_classifier, classifications
from patchbay.models.heads import base_head
from patchbay.models.replay import encoder_of

PIXELS = torch.randn(5, 3, pico.IMAGE, pico.IMAGE, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def classify(base: Backbone) -> list[Classification]:
    head = base_head(base)
    check_classifier(head)
    return classifications(head, Logits(head.model).whole({"pixel_values": PIXELS}))


def configured(folder: Path, out: Path, **config: object) -> Backbone:
    """The model with other words in its config."""
    pico.rewrite(folder, out, lambda tensors: tensors)
    file = out / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return Backbone.load(out)


@torch.inference_mode()
def test_probabilities_are_the_softmax_of_the_logits(backbone: Callable[..., Backbone]) -> None:
    base = backbone("vit")
    logits = base.model(pixel_values=PIXELS).logits
    results = classify(base)
    for row, result in zip(torch.softmax(logits.double(), -1), results, strict=True):
        assert list(result.probabilities) == list(pico.LABELS)
        assert list(result.probabilities.values()) == pytest.approx(row.tolist(), abs=1e-6)
        assert result.label == pico.LABELS[int(row.argmax())]


@torch.inference_mode()
def test_the_labels_of_a_multi_label_head_are_independent(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    base = configured(model_folder("vit"), tmp_path / "many", problem_type="multi_label_classification")
    logits = base.model(pixel_values=PIXELS).logits
    for row, result in zip(logits.double(), classify(base), strict=True):
        expected = [1 / (1 + float(torch.exp(-logit))) for logit in row]
        assert list(result.probabilities.values()) == pytest.approx(expected, abs=1e-6)
        assert sum(result.probabilities.values()) != pytest.approx(1, abs=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_logits_after_the_encoder_are_the_models(backbone: Callable[..., Backbone], kind: str) -> None:
    model = backbone(kind).model
    logits, encoder, inputs = Logits(model), encoder_of(model), {"pixel_values": PIXELS}
    assert encoder is not None and logits.encoder is encoder
    own = logits.after(encoder(**inputs), inputs)
    assert torch.equal(own, model(**inputs).logits) and torch.equal(own, logits.whole(inputs))
    other = logits.after(encoder(pixel_values=PIXELS + 1), inputs)
    assert not torch.equal(own, other), "the head does not run the encoder again"


def test_a_regression_is_no_classifier(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    base = configured(model_folder("vit"), tmp_path / "one", problem_type="regression")
    with pytest.raises(UnsupportedTask, match="regression"):
        classify(base)
    single = Backbone.load(model_folder("vit", labels=("score",)))
    with pytest.raises(UnsupportedTask, match="regression"):
        classify(single)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(model_folder: Callable[..., Path], tmp_path: Path, value: float) -> None:
    def broken(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["classifier.bias"][0] = value
        return tensors

    base = Backbone.load(pico.rewrite(model_folder("vit"), tmp_path / "broken", broken))
    with pytest.raises(NonFiniteValue, match="not finite"):
        classify(base)
