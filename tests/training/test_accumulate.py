"""A batch in parts has the gradients of the batch, experts' loss and all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.models.neuript import Montage, NeurIPTConfig, NeurIPTForEEGClassification, NeurIPTForPreTraining
from patchbay.models.neuript.classification import EEGClassifierOutput
from patchbay.models.neuript.pretraining import PreTrainingOutput
from patchbay.training.accumulate import Usages, accumulate, parts_of, seed_of

Found = tuple[float, list[torch.Tensor | None]]
MONTAGE = Montage.of(["Fp1", "C3", "O1"])
ROWS = 5


@given(st.integers(0, 100), st.integers(1, 100))
def test_every_window_is_in_one_part(count: int, rows: int) -> None:
    parts = parts_of(count, rows)
    assert [number for part in parts for number in range(part.start, part.stop)] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert all(size <= rows for size in sizes) and max(sizes, default=0) - min(sizes, default=0) <= 1


def signal() -> torch.Tensor:
    """Its rows differ, so that experts are not used evenly by each of them."""
    scale = torch.tensor([0.1, 0.3, 1.0, 3.0, 9.0])[:, None, None]
    return scale * torch.randn(ROWS, 3, 32, generator=torch.Generator().manual_seed(0))


def mask() -> torch.Tensor:
    return torch.tensor([[True, True, True], [True, True, False], [True] * 3, [True, False, False], [True] * 3])


def positions() -> torch.Tensor:
    return MONTAGE.positions.expand(ROWS, -1, -1)


def made(kind: type, **changes: object) -> NeurIPTForPreTraining | NeurIPTForEEGClassification:
    torch.manual_seed(0)
    fixed = {"dropout": 0.0, "router_noise": 0.0, "importance_weight": 1.0, **changes}
    model: NeurIPTForPreTraining | NeurIPTForEEGClassification = kind(NeurIPTConfig.of_size("test", **fixed))
    return model.train()


def guessing(rows: int, seen: list[float], **changes: object) -> Found:
    model, x = made(NeurIPTForPreTraining, **changes), signal()
    assert isinstance(model, NeurIPTForPreTraining)
    given = model.draw(x, generator=torch.Generator().manual_seed(1))
    parts = parts_of(ROWS, rows)
    counts = [int((given.hidden & mask()[:, :, None])[part].sum()) for part in parts]

    def usages_of(part: slice) -> Usages | None:
        return model.encode(given.rows(part), positions()[part], mask()[part]).usages

    def output_of(part: slice, elsewhere: Usages | None) -> PreTrainingOutput:
        found = model(x[part], positions()[part], mask()[part], given=given.rows(part), elsewhere=elsewhere)
        seen.append(float(found.auxiliary_loss.detach()))
        return found

    shares = [count / sum(counts) for count in counts]
    loss = accumulate(parts, shares, usages_of, output_of, 0.8, lambda part: seed_of(3, 0, part))
    return loss, [each.grad for each in model.parameters()]


def classifying(rows: int, seen: list[float], **changes: object) -> Found:
    model, x = made(NeurIPTForEEGClassification, num_labels=3, **changes), signal()
    assert isinstance(model, NeurIPTForEEGClassification)
    lobes, labels = MONTAGE.lobes.expand(ROWS, -1, -1), torch.tensor([0, 1, 2, 0, 1])

    def usages_of(part: slice) -> Usages | None:
        return model.neuript(x[part], positions()[part], mask()[part]).usages

    def output_of(part: slice, elsewhere: Usages | None) -> EEGClassifierOutput:
        inputs = (each[part] for each in (x, positions(), lobes, mask(), labels))
        found = model(*inputs, elsewhere=elsewhere)
        seen.append(float(found.auxiliary_loss.detach()))
        return found

    parts = parts_of(ROWS, rows)
    shares = [(part.stop - part.start) / ROWS for part in parts]
    loss = accumulate(parts, shares, usages_of, output_of, 0.8, lambda part: seed_of(3, 0, part))
    return loss, [each.grad for each in model.parameters()]


@pytest.mark.parametrize("step", [guessing, classifying])
@pytest.mark.parametrize("rows", [1, 2])
def test_parts_have_the_gradients_of_the_batch(step, rows: int) -> None:  # type: ignore[no-untyped-def]
    seen: list[float] = []
    whole, wanted = step(ROWS, [])
    loss, found = step(rows, seen)
    assert loss == pytest.approx(whole, rel=1e-5)
    assert len(seen) == -(-ROWS // rows) and seen == pytest.approx([seen[0]] * len(seen), rel=1e-5), "the batch's"
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("step", [guessing, classifying])
def test_with_dropout_both_times_the_same(step) -> None:  # type: ignore[no-untyped-def]
    """What experts get is found under the dropout that is trained under: else parts would not agree on their loss."""
    seen: list[float] = []
    first = step(2, seen, dropout=0.3, router_noise=0.1)
    assert seen == pytest.approx([seen[0]] * 3, rel=1e-5)
    again = step(2, [], dropout=0.3, router_noise=0.1)
    assert first[0] == again[0] and all(same(*both) for both in zip(first[1], again[1], strict=True))


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return (one is None and other is None) or (one is not None and other is not None and torch.equal(one, other))


def test_seeds() -> None:
    seeds = [seed_of(seed, number, part) for seed in range(3) for number in range(50) for part in range(4)]
    drawn = {tuple(torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist()) for seed in seeds}
    assert len(drawn) == len(seeds)
