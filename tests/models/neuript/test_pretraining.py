"""What is hidden reaches nobody, and is learnt to be guessed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.models.neuript.test_model import NAMES, signal

from patchbay.models.neuript import Montage, NeurIPTConfig, NeurIPTForPreTraining
from patchbay.models.neuript.masking import amplitude_mask, random_mask

ONLY_MASKS = (1.0, 0.0)


@pytest.fixture(scope="module")
def model() -> NeurIPTForPreTraining:
    torch.manual_seed(0)
    return NeurIPTForPreTraining(NeurIPTConfig.of_size("test")).eval()


def positions(rows: int, channels: int) -> torch.Tensor:
    return Montage.of(NAMES[:channels]).positions.expand(rows, -1, -1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("decoder_input", ["signal", "positions"])
def test_no_gradient_from_what_is_hidden(decoder_input: str) -> None:
    torch.manual_seed(0)
    model = NeurIPTForPreTraining(NeurIPTConfig.of_size("test", decoder_input=decoder_input)).eval()
    x = signal(2, 3, 32).requires_grad_()
    hidden = amplitude_mask(x.detach(), 0.5, seeded())
    found = model(x, positions(2, 3), hidden=hidden, generator=seeded(), shares=ONLY_MASKS).reconstruction
    assert found is not None
    found.square().sum().backward()
    assert x.grad is not None and not bool(x.grad[hidden].any())
    assert bool(x.grad[~hidden].any(-1).all())


def test_visible_tokens_do_not_see_what_is_hidden(model: NeurIPTForPreTraining) -> None:
    """Also without anything in its place: no other token looks at it, in time or across channels. Merged tokens have
    visible parts beside it.
    """
    x = signal(2, 3, 32)
    hidden = amplitude_mask(x, 0.5, seeded())
    changed = torch.where(hidden, 7 * x + 3, x)
    with torch.inference_mode():
        before, after = (model.neuript(each, positions(2, 3), None, hidden).hidden_states for each in (x, changed))
    torch.testing.assert_close(after[1][~hidden], before[1][~hidden], atol=1e-5, rtol=1e-4)
    assert float((after[1][hidden] - before[1][hidden]).abs().max()) > 0.1


def test_the_loss_is_of_what_is_hidden(model: NeurIPTForPreTraining) -> None:
    x = signal(2, 3, 32)
    hidden = random_mask(x, 0.3, seeded())
    with torch.inference_mode():
        output = model(x, positions(2, 3), hidden=hidden, generator=seeded())
    assert output.reconstruction is not None and output.loss is not None
    torch.testing.assert_close(output.loss, (output.reconstruction - x)[hidden].abs().mean())
    assert torch.equal(output.hidden, hidden) and output.auxiliary_loss is None


def test_padding_is_not_guessed(model: NeurIPTForPreTraining) -> None:
    x, at = signal(1, 5, 32), positions(1, 5)
    hidden = amplitude_mask(x, 0.5, seeded())
    mask = torch.tensor([[True, True, True, False, False]])
    with torch.inference_mode():
        padded = model(x, at, mask, hidden, seeded(), ONLY_MASKS)
        alone = model(x[:, :3], at[:, :3], None, hidden[:, :3], seeded(), ONLY_MASKS)
    torch.testing.assert_close(padded.reconstruction[:, :3], alone.reconstruction, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(padded.loss, alone.loss)


def test_another_power(model: NeurIPTForPreTraining) -> None:
    torch.manual_seed(0)
    squared = NeurIPTForPreTraining(NeurIPTConfig.of_size("test", loss_power=2.0)).eval()
    x = signal(1, 3, 32)
    hidden = random_mask(x, 0.3, seeded())
    with torch.inference_mode():
        output = squared(x, positions(1, 3), hidden=hidden, generator=seeded())
    assert output.reconstruction is not None
    torch.testing.assert_close(output.loss, (output.reconstruction - x)[hidden].square().mean().sqrt())


def test_a_mask_is_drawn_with_one_of_the_ratios(model: NeurIPTForPreTraining) -> None:
    x, seen = signal(2, 3, 40), set()
    for seed in range(12):
        with torch.inference_mode():
            hidden = model(x, positions(2, 3), generator=seeded(seed)).hidden
        [count] = hidden.sum(-1).unique().tolist()
        seen.add(count)
    assert seen == {8, 14, 20}


def test_training_has_the_experts_loss(model: NeurIPTForPreTraining) -> None:
    torch.manual_seed(0)
    training = NeurIPTForPreTraining(NeurIPTConfig.of_size("test")).train()
    x = signal(2, 3, 32)
    output = training(x, positions(2, 3), generator=seeded())
    assert output.auxiliary_loss is not None and float(output.auxiliary_loss.detach()) > 0
    rest = (output.reconstruction - x)[output.hidden].abs().mean()
    torch.testing.assert_close(output.loss, rest + 0.8 * output.auxiliary_loss)
    output.loss.backward()
    assert all(parameter.grad is not None for name, parameter in training.named_parameters() if "expert" not in name)


def waves(rows: int, seed: int) -> torch.Tensor:
    """Sums of two slow waves, the same for three channels but for their phase."""
    drawn = torch.rand(rows, 2, 3, 1, generator=seeded(seed))
    time = torch.arange(32.0)
    rates = torch.rand(rows, 2, 1, 1, generator=seeded(seed + 1)) * 0.4 + 0.1
    return 2 * (time * rates + 6.3 * drawn).sin().sum(1)


@pytest.mark.parametrize("mask", [amplitude_mask, random_mask])
def test_it_learns(mask: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    config = NeurIPTConfig.of_size("test", dropout=0.0, merges=(1, 2), experts=(0, 2))
    model = NeurIPTForPreTraining(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    at, losses = positions(8, 3), []
    for step in range(80):
        x = waves(8, step)
        loss = model(x, at, hidden=mask(x, 0.5, seeded(step)), generator=seeded(step)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_the_masks_token_learns() -> None:
    torch.manual_seed(0)
    model = NeurIPTForPreTraining(NeurIPTConfig.of_size("test"))
    model(signal(1, 2, 16), positions(1, 2), generator=seeded()).loss.backward()
    assert model.mask_token.grad is not None and bool(model.mask_token.grad.any())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_layers_that_are_gone_through_again(dropout: float) -> None:
    """The same gradients, dropout and routers' noise and all, with a fraction kept."""
    found, kept = [], []
    for recomputes in (False, True):
        torch.manual_seed(0)
        model = NeurIPTForPreTraining(NeurIPTConfig.of_size("test", dropout=dropout)).train()
        model.neuript.recomputes = recomputes
        sizes: list[int] = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, all=sizes: (all.append(x.numel()), x)[1], lambda x: x):
            loss = model(signal(2, 3, 32), positions(2, 3), generator=seeded()).loss
        loss.backward()
        found.append([loss.detach(), *(each.grad for each in model.parameters())])
        kept.append(sum(sizes))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
    assert kept[1] < kept[0] / 8
