"""Banded truncated SVD: never over its budget, never worse with more, exact where the rank allows it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay.compress import low_rank
from patchbay.compress.low_rank import ENCODINGS, as_stored, low_rank_bands, stored_bytes
from patchbay.delta.codecs import VALUES
from patchbay.delta.low_rank import FactorPair


def random_matrix(rows: int, columns: int, *, decay: float = 0.5, seed: int = 0) -> torch.Tensor:
    """Singular values that fall as i^-decay, as those of real task vectors do."""
    generator = torch.Generator().manual_seed(seed)
    side = min(rows, columns)
    u, v = (torch.linalg.qr(torch.randn(n, side, generator=generator)).Q for n in (rows, columns))
    values = torch.arange(1, side + 1).pow(-decay)
    return torch.matmul(u * values, v.T)


def read_back(bands: list[FactorPair], tau: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(len(tau), tau[0].numel())
    for left, right, encoding in bands:
        total += as_stored(left, encoding) @ as_stored(right, encoding).T
    return total.reshape(tau.shape)


def relative_error(bands: list[FactorPair], tau: torch.Tensor) -> float:
    return float((tau - read_back(bands, tau)).norm() / tau.norm())


def num_bytes(bands: list[FactorPair]) -> int:
    """Counted from what the codecs really write."""
    total = 0
    for left, right, encoding in bands:
        for factor in (left, right):
            positions = torch.arange(factor.numel()).numpy()
            total += len(VALUES[encoding].encode(factor.flatten().numpy(), positions, tuple(factor.shape)))
    return total


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    bits=st.sampled_from([0.0, 0.05, 0.3, 1, 2.5, 8, 40]),
    values=st.sampled_from(["random", "zero", "few", "tiny", "huge", "one"]),
    seed=st.integers(0, 99),
)
def test_every_matrix_and_budget(rows: int, columns: int, bits: float, values: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tau = torch.randn(rows, columns, generator=generator)
    scale = {"random": 1.0, "zero": 0.0, "tiny": 1e-12, "huge": 1e12}.get(values)
    tau = {"few": tau.sign(), "one": torch.zeros_like(tau)}.get(values, tau) * (scale if scale is not None else 1.0)
    if values == "one":
        tau[seed % rows, seed % columns] = -3.0
    bands = low_rank_bands(tau, bits)
    assert num_bytes(bands) <= bits * tau.numel() / 8
    assert sum(left.shape[1] for left, _, _ in bands) <= min(rows, columns)
    order = [ENCODINGS.index(encoding) for _, _, encoding in bands]
    assert order == sorted(set(order))
    for left, right, _ in bands:
        assert left.shape == (rows, left.shape[1]) and right.shape == (columns, left.shape[1])
        assert left.dtype == right.dtype == torch.float32
        assert left.is_contiguous() and right.is_contiguous()
    assert not bands or relative_error(bands, tau) < 1


@pytest.mark.parametrize("decay", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(96, 96), (64, 200), (200, 64)])
def test_more_bits_are_less_error(decay: float, shape: tuple[int, int]) -> None:
    tau = random_matrix(*shape, decay=decay)
    budgets = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
    found = [low_rank_bands(tau, bits) for bits in budgets]
    assert all(num_bytes(bands) <= bits * tau.numel() / 8 for bands, bits in zip(found, budgets, strict=True))
    errors = [relative_error(bands, tau) for bands in found]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)


@pytest.mark.parametrize("bits", [0.2, 0.5, 1, 2, 4])
@pytest.mark.parametrize("decay", [0.2, 0.5, 1.0])
def test_no_single_encoding_is_better(bits: float, decay: float) -> None:
    tau = random_matrix(128, 160, decay=decay)
    u, s, vh = torch.linalg.svd(tau, full_matrices=False)
    for encoding in ENCODINGS:
        fitting = [r for r in range(1, 129) if stored_bytes(encoding, r, (128, 160)) <= bits * tau.numel() / 8]
        rank = max(fitting, default=0)
        root = s[:rank].sqrt()
        alone = [(u[:, :rank] * root, vh[:rank].T * root, encoding)] if rank else []
        # The choice goes by predicted errors of unit vectors.
        assert relative_error(low_rank_bands(tau, bits), tau) <= 1.01 * relative_error(alone, tau)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_matrix_of_low_rank_is_recovered_to_the_codecs_error(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    tau = torch.randn(120, rank, generator=generator) @ torch.randn(rank, 90, generator=generator)
    bands = low_rank_bands(tau, 16 * rank * (120 + 90) / tau.numel() + 0.1)
    assert sum(left.shape[1] for left, _, _ in bands) == rank
    assert relative_error(bands, tau) < 4e-3  # bf16 rounds by 2^-9 at most, in both factors
    exact = sum((left @ right.T for left, right, _ in bands), torch.zeros_like(tau))
    torch.testing.assert_close(exact, tau, rtol=1e-4, atol=1e-4)


def test_a_convolution_is_a_matrix_of_its_output_channels() -> None:
    tau = random_matrix(32, 27).reshape(32, 3, 3, 3)
    bands, flat = low_rank_bands(tau, 3), low_rank_bands(tau.reshape(32, 27), 3)
    assert [(left.tolist(), right.tolist(), name) for left, right, name in bands] == [
        (left.tolist(), right.tolist(), name) for left, right, name in flat
    ]
    assert relative_error(bands, tau) < 0.7


def test_big_matrices_get_only_the_vectors_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """The randomised factors are as good as the exact ones, the same every time, and leave the global generator be."""
    tau = random_matrix(320, 400)
    exact = relative_error(low_rank_bands(tau, 0.1), tau)
    monkeypatch.setattr(low_rank, "EXACT_SIDE", 64)
    monkeypatch.setattr(low_rank, "_svd", below(low_rank._svd, 200))
    before = torch.get_rng_state()
    first, second = low_rank_bands(tau, 0.1), low_rank_bands(tau, 0.1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert relative_error(first, tau) == pytest.approx(exact, rel=1e-2)


def below(svd: object, side: int) -> object:
    """The same decomposition, which refuses large matrices."""

    def small(matrix: torch.Tensor) -> object:
        assert min(matrix.shape) < side
        return svd(matrix)  # type: ignore[operator]

    return small


def test_the_same_matrix_gives_the_same_bands() -> None:
    tau = random_matrix(80, 50)
    first, second = low_rank_bands(tau, 1), low_rank_bands(tau.clone(), 1)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert [name for _, _, name in first] == [name for _, _, name in second]


def test_leading_vectors_are_stored_more_precisely_where_values_fall_fast() -> None:
    names = [name for _, _, name in low_rank_bands(random_matrix(128, 128, decay=1.0), 1)]
    assert len(names) >= 2
