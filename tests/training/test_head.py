from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from patchbay.errors import InputError
from patchbay.models.neuript import NeurIPTConfig, NeurIPTForEEGClassification
from patchbay.models.neuript.montage import Montage
from patchbay.training import head as module
from patchbay.training.head import features, fit_head
from patchbay.training.windows import Batches

EMPTY = (torch.zeros(0, 1), torch.zeros(0, dtype=torch.long))


def model(labels: int, **changes: object) -> NeurIPTForEEGClassification:
    torch.manual_seed(0)
    return NeurIPTForEEGClassification(NeurIPTConfig.of_size("test", num_labels=labels, **changes)).train(False)


def examples(model: NeurIPTForEEGClassification, rows: int, labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of ten causes, one of which is the class, far from mean 0 and deviation 1."""
    generator = torch.Generator().manual_seed(rows)
    width = model.classifier.in_features
    classes = torch.arange(rows) % labels
    causes = torch.randn(rows, 10, generator=generator)
    causes[:, :labels] += 4 * functional.one_hot(classes, labels)
    mixed = causes @ torch.randn(10, width, generator=torch.Generator().manual_seed(0))
    return mixed * torch.linspace(0.1, 5, width) + 7, classes


@pytest.mark.parametrize("labels", [2, 3])
def test_what_it_was_not_fitted_to_is_told_apart(labels: int) -> None:
    found = model(labels)
    fit_head(found, examples(found, 150, labels), examples(found, 60, labels))
    rows, classes = examples(found, 300, labels)
    logits = found.classifier(rows).detach()
    answers = (logits[:, 0] > 0).long() if labels == 2 else logits.argmax(1)
    assert (answers == classes).float().mean() > 0.8


def test_it_is_a_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the loss with the weights' squares, whose gradient is 0 there."""
    monkeypatch.setattr(module, "STEPS", 500)
    found = model(3)
    rows, classes = examples(found, 120, 3)
    fit_head(found, (rows, classes), EMPTY)
    mean, deviation = rows.double().mean(0), rows.double().std(0)
    weight = (found.classifier.weight.double() * deviation).detach().requires_grad_()
    bias = (found.classifier.bias.double() + found.classifier.weight.double() @ mean).detach().requires_grad_()
    loss = found.balanced_loss(functional.linear((rows.double() - mean) / deviation, weight, bias), classes)
    (loss + module.UNJUDGED * weight.square().sum() / 2).backward()
    assert weight.grad is not None and bias.grad is not None
    assert float(weight.grad.abs().max()) < 1e-3 and float(bias.grad.abs().max()) < 1e-3


def test_nothing_but_the_head_changes() -> None:
    found = model(2)
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    fit_head(found, examples(found, 40, 2), EMPTY)
    changed = {name for name, tensor in found.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_features_are_what_the_head_reads() -> None:
    found, montage = model(3), Montage.of(["C3", "Cz", "O1"])

    class Two(Batches):
        def __len__(self) -> int:
            return 40

        def of(self, numbers: object) -> dict[str, torch.Tensor]:
            count = len(range(40)[numbers.start : numbers.stop])  # type: ignore[attr-defined]
            signal = torch.randn(40, 3, 64, generator=torch.Generator().manual_seed(1))
            same = {"positions": montage.positions, "lobes": montage.lobes}
            rows = {name: tensor.expand(count, -1, -1) for name, tensor in same.items()}
            return {"signal": signal[numbers.start : numbers.stop], **rows}  # type: ignore[attr-defined]

    batches = Two([])
    rows = torch.cat(list(features(found, batches)))
    with torch.no_grad():
        expected = found(**batches.of(range(40))).logits
        torch.testing.assert_close(found.classifier(rows), expected, atol=1e-5, rtol=1e-5)


def test_two_layers_are_not_fitted() -> None:
    found = model(2, head_size=4)
    with pytest.raises(InputError, match="head_size must be 0"):
        fit_head(found, EMPTY, EMPTY)
