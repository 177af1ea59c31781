"""The encoder on any montage and length: (m) to (p) of the specification."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.neuript.names import PHYSIONET
from transformers import AutoModel

from patchbay.models.neuript import Montage, NeurIPTConfig, NeurIPTForEEGClassification, NeurIPTModel
from patchbay.models.neuript.blocks import Merge, repeated

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
NAMES = tuple(name.rstrip(".") for name in PHYSIONET)


@pytest.fixture(scope="module")
def model() -> NeurIPTModel:
    torch.manual_seed(0)
    return NeurIPTModel(NeurIPTConfig.of_size("test")).eval()


def signal(rows: int, channels: int, length: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, channels, length, generator=torch.Generator().manual_seed(seed))


def positions(rows: int, channels: int) -> torch.Tensor:
    return Montage.of(NAMES[:channels]).positions.expand(rows, -1, -1)


def levels(model: NeurIPTModel, x: torch.Tensor, *more: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        found = model(x, *(more or (positions(*x.shape[:2]),))).hidden_states
    assert found is not None
    return found


@pytest.mark.parametrize("channels", [1, 2, 3, 14, 16, 19, 20, 22, 62, 64])
def test_any_channels(model: NeurIPTModel, channels: int) -> None:
    """(m)."""
    found = levels(model, signal(1, channels, 64))
    assert [level.shape for level in found] == [(1, channels, t, 48) for t in (64, 64, 16, 16, 8, 8, 4)]
    assert all(bool(torch.isfinite(level).all()) for level in found)


@pytest.mark.parametrize(
    ("length", "times"),
    [
        (64, (64, 64, 16, 16, 8, 8, 4)),
        (100, (100, 100, 25, 25, 13, 13, 7)),
        (128, (128, 128, 32, 32, 16, 16, 8)),
        (256, (256, 256, 64, 64, 32, 32, 16)),
        (320, (320, 320, 80, 80, 40, 40, 20)),
        (640, (640, 640, 160, 160, 80, 80, 40)),
        (3, (3, 3, 1, 1, 1, 1, 1)),
        (1, (1, 1, 1, 1, 1, 1, 1)),
    ],
)
def test_any_length(model: NeurIPTModel, length: int, times: tuple[int, ...]) -> None:
    """(m): lengths are rounded up."""
    found = levels(model, signal(1, 2, length))
    assert tuple(level.shape[2] for level in found) == times
    assert all(bool(torch.isfinite(level).all()) for level in found)


def test_channels_in_another_order(model: NeurIPTModel) -> None:
    """(n)."""
    x, order = signal(2, 20, 64), torch.randperm(20, generator=torch.Generator().manual_seed(1))
    turned = levels(model, x[:, order], positions(2, 20)[:, order])
    for found, expected in zip(turned, levels(model, x), strict=True):
        torch.testing.assert_close(found, expected[:, order], **CLOSE)


def test_a_window_is_answered_as_it_is_alone(model: NeurIPTModel) -> None:
    """(o)."""
    x = signal(6, 5, 64)
    together = levels(model, x)
    for row in range(6):
        for found, expected in zip(levels(model, x[row : row + 1]), together, strict=True):
            torch.testing.assert_close(found, expected[row : row + 1], **CLOSE)


@pytest.mark.parametrize("coordinates", ["fixed", "stretched"])
def test_padding_is_seen_by_nobody(coordinates: str) -> None:
    """(p): whatever stands in it, and not as if it were zeros of a channel."""
    torch.manual_seed(0)
    model = NeurIPTModel(NeurIPTConfig.of_size("test", coordinates=coordinates)).eval()
    x, at = signal(2, 5, 64), positions(2, 5).clone()
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    padded = levels(model, x, at, mask)
    x[1, 3:], at[1, 3:] = 1e3, 400.0
    torch.testing.assert_close(levels(model, x, at, mask)[-1][1, :3], padded[-1][1, :3], **CLOSE)
    torch.testing.assert_close(levels(model, x[1:, :3], at[1:, :3])[-1][0], padded[-1][1, :3], **CLOSE)
    zeros = torch.cat((x[1:, :3], torch.zeros(1, 2, 64)), 1)
    assert float((levels(model, zeros)[-1][0, :3] - padded[-1][1, :3]).abs().max()) > 1e-3


def test_where_channels_are_matters(model: NeurIPTModel) -> None:
    x = signal(1, 3, 64)
    elsewhere = Montage.of(["O1", "Oz", "O2"]).positions[None]
    assert float((levels(model, x)[-1] - levels(model, x, elsewhere)[-1]).abs().max()) > 1e-2


def test_when_samples_are_matters(model: NeurIPTModel) -> None:
    x = signal(1, 3, 64)
    backwards = levels(model, x.flip(2))[-1].flip(2)
    assert float((levels(model, x)[-1] - backwards).abs().max()) > 1e-2


def test_the_first_level_has_the_time_and_not_the_place(model: NeurIPTModel) -> None:
    x = signal(1, 1, 64).expand(-1, 3, -1)
    first, second = levels(model, x)[:2]
    torch.testing.assert_close(first[:, 0], first[:, 2])
    assert float((second[:, 0] - second[:, 2]).abs().max()) > 1e-2


def test_neighbours_are_merged_side_by_side() -> None:
    torch.manual_seed(0)
    merge, z = Merge(NeurIPTConfig.of_size("test"), 4), torch.randn(2, 3, 10, 48)
    found = merge(z)
    assert found.shape == (2, 3, 3, 48)
    third = torch.cat([z[:, :, time] for time in (4, 5, 6, 7)], -1)
    torch.testing.assert_close(found[:, :, 1], merge.projection(merge.norm(third)))
    last = torch.cat([z[:, :, time] for time in (8, 9, 8, 9)], -1)
    torch.testing.assert_close(found[:, :, 2], merge.projection(merge.norm(last)))


@pytest.mark.parametrize(
    ("length", "expected"), [(8, "01234567"), (7, "01234566"), (6, "01234545"), (3, "0122"), (1, "0000"), (2, "0101")]
)
def test_what_fills_up_a_length(length: int, expected: str) -> None:
    found = repeated(torch.arange(length)[None, None], 4, 2)
    assert found.flatten().tolist() == [int(digit) for digit in expected]


def test_a_merged_token_is_hidden_where_all_of_its_parts_are() -> None:
    merge = Merge(NeurIPTConfig.of_size("test"), 2)
    visible = torch.tensor([[[True, False, False, False, True, True, False]]])
    assert merge.of_mask(visible).tolist() == [[[True, False, True, False]]]


def test_a_folder_is_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = NeurIPTForEEGClassification(NeurIPTConfig.of_size("test", num_labels=3)).eval()
    whole.save_pretrained(tmp_path)
    x, montage = signal(2, 4, 64), Montage.of(NAMES[:4])
    at, lobes = montage.positions.expand(2, -1, -1), montage.lobes.expand(2, -1, -1)
    again = NeurIPTForEEGClassification.from_pretrained(tmp_path)
    with torch.inference_mode():
        assert torch.equal(again(x, at, lobes).logits, whole(x, at, lobes).logits)
        encoder = AutoModel.from_pretrained(tmp_path)
        assert isinstance(encoder, NeurIPTModel)
        assert torch.equal(encoder(x, at).last_hidden_state, whole.neuript(x, at).last_hidden_state)
