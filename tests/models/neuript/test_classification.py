"""Means over lobes, the head on them and its loss: (w) to (z) of the specification."""

from __future__ import annotations

import pytest
import torch
from tests.models.neuript.test_model import CLOSE, NAMES, signal
from torch import nn
from torch.nn import functional

from patchbay.models.neuript import Lobe, Montage, NeurIPTConfig, NeurIPTForEEGClassification
from patchbay.models.neuript.montage import PAPER_20
from patchbay.models.neuript.pooling import lobe_means, pooled


def build(**changes: object) -> NeurIPTForEEGClassification:
    torch.manual_seed(0)
    return NeurIPTForEEGClassification(NeurIPTConfig.of_size("test", **changes)).eval()


def inputs(names: tuple[str, ...] = PAPER_20, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    montage = Montage.of(names)
    at, lobes = montage.positions.expand(rows, -1, -1), montage.lobes.expand(rows, -1, -1)
    return signal(rows, len(names), 64), at, lobes


def test_means_by_hand() -> None:
    """(x) and (y): two channels and one in a lobe, three lobes without any."""
    level = torch.randn(2, 3, 5, 4)
    lobes = torch.zeros(2, 3, 5, dtype=torch.bool)
    lobes[:, [0, 2], Lobe.FRONTAL] = True
    lobes[:, 1, Lobe.OCCIPITAL] = True
    found = lobe_means(level, lobes)
    torch.testing.assert_close(found[:, Lobe.FRONTAL], level[:, [0, 2]].mean((1, 2)))
    torch.testing.assert_close(found[:, Lobe.OCCIPITAL], level[:, 1].mean(1))
    assert not bool(found[:, [Lobe.PARIETAL, Lobe.TEMPORAL_LEFT, Lobe.TEMPORAL_RIGHT]].any())


def test_a_channel_in_two_lobes() -> None:
    level, lobes = torch.randn(1, 1, 3, 4), torch.zeros(1, 1, 5, dtype=torch.bool)
    lobes[..., [1, 3]] = True
    found = lobe_means(level, lobes)
    torch.testing.assert_close(found[0, 1], level[0, 0].mean(0))
    torch.testing.assert_close(found[0, 3], found[0, 1])


def test_levels_stand_side_by_side() -> None:
    lobes = torch.rand(2, 3, 5) > 0.5
    levels = [torch.randn(2, 3, length, 4) for length in (8, 4, 2)]
    found = pooled(levels, lobes).view(2, 3, 5, 4)
    for number, level in enumerate(levels):
        torch.testing.assert_close(found[:, number], lobe_means(level, lobes))


def test_order_within_a_lobe_makes_no_difference() -> None:
    """(w): nor the order of all channels, as long as their lobes and places move with them."""
    model = build(num_labels=3)
    x, at, lobes = inputs()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(x, at, lobes).logits
        torch.testing.assert_close(model(x[:, order], at[:, order], lobes[:, order]).logits, expected, **CLOSE)
        elsewhere = lobes.roll(1, 2)
        assert float((model(x, at, elsewhere).logits - expected).abs().max()) > 1e-3


@pytest.mark.parametrize(("levels", "number"), [("all", 7), ("blocks", 6)])
def test_the_heads_input(levels: str, number: int) -> None:
    """(z), and the paper's 26,880 numbers."""
    model = build(num_labels=6, pooled_levels=levels)
    assert isinstance(model.classifier, nn.Linear)
    assert (model.classifier.in_features, model.classifier.out_features) == (number * 5 * 48, 6)
    with torch.device("meta"):
        paper = NeurIPTForEEGClassification(NeurIPTConfig.paper(num_labels=6, pooled_levels=levels))
    assert sum(p.numel() for p in paper.classifier.parameters()) == (number * 3840 + 1) * 6


def test_the_embedding_comes_first_and_then_the_last_block() -> None:
    model = build(num_labels=3)
    x, at, lobes = inputs()
    with torch.inference_mode():
        levels = model.neuript(x, at).hidden_states
        read = pooled([levels[number] for number in (0, 6, 5, 4, 3, 2, 1)], lobes)
        torch.testing.assert_close(model(x, at, lobes).logits, model.classifier(read))


def test_two_classes_are_one_number() -> None:
    model = build(num_labels=2)
    with torch.inference_mode():
        logits = model(*inputs()).logits
        [z] = model.classifier(pooled(model._levels(model.neuript(*inputs()[:2]).hidden_states), inputs()[2])).T
    assert model.classifier.out_features == 1
    torch.testing.assert_close(torch.softmax(logits, -1)[:, 1], torch.sigmoid(z))


def test_a_hidden_layer() -> None:
    model = build(num_labels=3, head_size=16)
    assert [type(part) for part in model.classifier] == [nn.Linear, nn.SiLU, nn.Linear]
    with torch.inference_mode():
        assert model(*inputs()).logits.shape == (2, 3)


@pytest.mark.parametrize(("priors", "strength"), [(None, 0.0), ([0.7, 0.2, 0.1], 0.0), ([0.7, 0.2, 0.1], 0.3)])
def test_the_balanced_loss(priors: list[float] | None, strength: float) -> None:
    model = build(num_labels=3, label_priors=priors, prior_strength=strength)
    labels = torch.tensor([2, 0])
    with torch.inference_mode():
        output = model(*inputs(), labels=labels)
    assert output.logits is not None and output.loss is not None
    shifted = output.logits + strength * torch.logit(torch.tensor(priors or [0.5] * 3))
    each = [
        -(functional.logsigmoid(z) * y + functional.logsigmoid(-z) * (1 - y)).sum()
        for z, y in zip(shifted, functional.one_hot(labels, 3), strict=True)
    ]
    torch.testing.assert_close(output.loss, torch.stack(each).mean())


def test_the_balanced_loss_of_two_classes() -> None:
    model = build(num_labels=2, label_priors=[0.9, 0.1], prior_strength=0.2)
    with torch.inference_mode():
        output = model(*inputs(), labels=torch.tensor([1, 0]))
    assert output.logits is not None
    z = output.logits[:, 1] + 0.2 * torch.logit(torch.tensor(0.1))
    expected = -(functional.logsigmoid(z[0]) + functional.logsigmoid(-z[1])) / 2
    torch.testing.assert_close(output.loss, expected)


def test_padding_is_in_no_lobe() -> None:
    model = build(num_labels=3)
    x, at, lobes = inputs(NAMES[:6])
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    with torch.inference_mode():
        padded = model(x, at, lobes, mask).logits
        torch.testing.assert_close(padded[1:], model(x[1:, :4], at[1:, :4], lobes[1:, :4]).logits, **CLOSE)


def test_it_learns_what_is_in_the_signal() -> None:
    """Which lobe swings."""
    model = build(num_labels=2, dropout=0.0, merges=(1, 4), experts=(0, 2)).train()
    montage = Montage.of(("Fp1", "Fp2", "O1", "O2"))
    at, lobes = montage.positions.expand(8, -1, -1), montage.lobes.expand(8, -1, -1)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        labels = torch.randint(2, (8,), generator=generator)
        x = torch.randn(8, 4, 32, generator=generator)
        x[labels == 0, :2] *= 3
        x[labels == 1, 2:] *= 3
        output = model(x, at, lobes, labels=labels)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
    assert float((output.logits.argmax(1) == labels).float().mean()) >= 0.875


def test_one_label_is_no_classifier() -> None:
    with pytest.raises(ValueError, match="two labels or more, not 1"):
        NeurIPTForEEGClassification(NeurIPTConfig.of_size("test", num_labels=1))
