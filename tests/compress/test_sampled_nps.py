"""The sampled form beside singular vectors: how the bits are shared, and that a search finds where they belong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from tests import pico
from tests.compress.problems import problem_of, random_tensors, texts

from patchbay.backbone import Backbone
from patchbay.compress.calibration import Calibration
from patchbay.compress.compress import Options, compress
from patchbay.compress.parts import LowRankPart, Part, SparsePart
from patchbay.compress.prune import num_kept
from patchbay.compress.sampled_nps import SHARES, SampledNps
from patchbay.delta import DeltaFile, read_delta
from patchbay.delta.encode import Streams

ModelFolder = Callable[..., Path]
TENSORS = random_tensors(a=(120, 200), b=(96, 64), c=(256, 48))
TOTAL = sum(tau.numel() for tau in TENSORS.values())
INPUTS = Calibration(texts(12))


def pruned(density: float, **choice: Any) -> dict[str, Part]:
    method = SampledNps(problem_of(TENSORS), Options())
    method.tune(density)
    assert method.choice is not None
    method.choice = replace(method.choice, **choice)
    pruner = method.pruner(density)
    return {name: pruner(name, tau) for name, tau in sorted(TENSORS.items())}


def num_bytes(parts: dict[str, Part]) -> int:
    """Of all streams under zstd."""
    streams = Streams()
    for name, part in parts.items():
        if isinstance(part, LowRankPart):
            streams.add_low_rank(name, part.bands, torch.float32, part.shape)
        elif isinstance(part, SparsePart):
            streams.add_sparse(name, part.rows, part.values, torch.float32, multiples=part.multiples)
            if part.bands:
                streams.add_factors(name, part.bands)
    return sum(len(zstandard.compress(data, 19)) for data in streams.streams.values())


@pytest.mark.parametrize("allocation", ["even", "energy"])
def test_a_share_of_the_bits_buys_singular_vectors(allocation: str) -> None:
    before = TOTAL
    for share in SHARES[1:-1]:
        parts = pruned(0.1, share=share, allocation=allocation)
        kept = [len(part.rows.positions) for part in parts.values() if isinstance(part, SparsePart)]
        assert 0 < sum(kept) < before
        assert any(part.bands for part in parts.values() if isinstance(part, SparsePart))
        before = sum(kept)
    assert before < num_kept(0.1, TOTAL) / 2


def test_all_of_the_bits_leave_nothing_to_sample() -> None:
    assert all(isinstance(part, LowRankPart) for part in pruned(0.1, share=1.0).values())


def test_no_bits_buy_nothing() -> None:
    for part in pruned(0.0, share=0.5).values():
        assert isinstance(part, SparsePart)
        assert not part.bands
        assert not len(part.rows.positions)


def test_bits_that_buy_no_vector_are_drawn_with() -> None:
    """Too few for one vector of any matrix: the draw has them all, as without a share."""
    parts, alone = pruned(0.002, share=0.5), pruned(0.002)
    kept = [sum(len(part.rows.positions) for part in drawn.values()) for drawn in (parts, alone)]  # type: ignore[union-attr]
    assert not any(part.bands for part in parts.values())  # type: ignore[union-attr]
    assert kept[0] == pytest.approx(kept[1], rel=0.1) and kept[1] > 50


@pytest.mark.parametrize("share", SHARES[1:])
def test_sizes_of_all_shares_are_alike(share: float) -> None:
    assert num_bytes(pruned(0.1, share=share)) == pytest.approx(num_bytes(pruned(0.1)), rel=0.15)


def test_a_difference_is_its_factors_and_a_draw_of_the_rest() -> None:
    """Unbiased: the mean over seeds comes close to the whole."""
    total, draws = {name: torch.zeros_like(tau) for name, tau in TENSORS.items()}, 30
    for seed in range(draws):
        method = SampledNps(problem_of(TENSORS), Options(seed=seed))
        method.tune(0.2)
        assert method.choice is not None
        everything = {"inside": 8, "scale": 1.0, "weights": (1.0,) * 8}
        method.choice = replace(method.choice, share=0.25, **everything)
        pruner = method.pruner(0.2)
        for name, tau in sorted(TENSORS.items()):
            total[name] += pruner(name, tau).to_dense() / draws  # type: ignore[union-attr]
    for name, tau in TENSORS.items():
        assert (total[name] - tau).norm() < 0.5 * tau.norm()


def few_directions(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every matrix moves along one direction."""
    generator = torch.Generator().manual_seed(1)

    def moved(tau: torch.Tensor) -> torch.Tensor:
        if tau.dim() != 2 or tau.numel() < 4096:
            return tau
        left, right = (torch.randn(side, 1, generator=generator) for side in tau.shape)
        return tau + 0.02 * left @ right.T

    return {name: moved(tau) for name, tau in tensors.items()}


def test_a_search_buys_the_vectors_of_a_difference_that_has_few(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("bert_classifier", layers=1)
    tuned = pico.rewrite(base, tmp_path / "tuned", few_directions)
    report = compress(base, tuned, tmp_path / "d", Options(density=0.05, evaluations=20), calibration=INPUTS)
    plain = compress(base, tuned, tmp_path / "plain", Options(density=0.05, evaluations=0), calibration=INPUTS)
    params = DeltaFile.open(tmp_path / "d").manifest.compression.params
    assert float(params["low_rank"]) > 0
    assert report.divergence is not None and plain.divergence is not None
    assert report.divergence < 0.1 * plain.divergence
    assert report.num_bytes < 1.3 * plain.num_bytes
    backbone = Backbone.load(base, device="cpu")
    assert read_delta(tmp_path / "d", backbone.specs, backbone.fingerprint).factors
