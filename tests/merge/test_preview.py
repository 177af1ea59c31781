from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.merge.methods import METHODS
from patchbay.merge.preview import preview, warnings_of

ModelFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def base(llama: Path) -> Backbone:
    return Backbone.load(llama)


@pytest.fixture(scope="session")
def deltas(llama: Path, finetune_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Delta]:
    folder = tmp_path_factory.mktemp("preview")
    return [
        pico.delta(llama, finetune_folder("llama", seed=s), folder / f"{s}", density=d, values="fp32")
        for s, d in ((1, 1.0), (2, 0.3))
    ]


def flat(delta: Delta, base: Backbone, *, kind: str | None = None) -> torch.Tensor:
    names = [name for name, spec in base.specs.items() if kind in (None, spec.kind.value)]
    parts = [delta.difference(name) if name in delta else torch.zeros(base.specs[name].shape) for name in names]
    return torch.cat([part.reshape(-1) for part in parts]).double()


def test_norms_cosines_and_conflicts_are_those_of_the_flat_vectors(base: Backbone, deltas: list[Delta]) -> None:
    found = preview(deltas, base)
    taus = torch.stack([flat(delta, base) for delta in deltas])
    assert found.norms == pytest.approx(taus.norm(dim=1).tolist(), rel=1e-6)
    assert [row[0] for row in found.cosines] == pytest.approx(
        [1.0, float(torch.cosine_similarity(*taus, dim=0))], abs=1e-6
    )
    both = (taus != 0).all(0)
    assert found.sign_conflicts == pytest.approx(float((taus.sign().sum(0) == 0)[both].double().mean()), rel=1e-9)
    for kind, norms in found.kind_norms.items():
        assert norms == pytest.approx([float(flat(delta, base, kind=kind).norm()) for delta in deltas], rel=1e-6)
    assert set(found.kind_norms) == {spec.kind.value for spec in base.specs.values()}


def test_the_share_along_the_base(base: Backbone, deltas: list[Delta]) -> None:
    """All of a multiple of the base's matrices, nothing of what is orthogonal to every row."""
    matrices = [name for name, spec in base.specs.items() if spec.is_matrix]
    along = {name: 0.1 * base.stored(name) for name in matrices}
    across = {}
    for name in matrices:
        tau, weight = deltas[0].difference(name), base.stored(name)
        shares = (tau * weight).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True)
        across[name] = tau - shares * weight
    given = [replace(deltas[0], matrices={}, factors={}, vectors=vectors) for vectors in (along, across)]
    assert preview(given, base).along_base == pytest.approx((1.0, 0.0), abs=1e-6)


def test_one_delta_agrees_with_itself_and_its_opposite_with_nothing(base: Backbone, deltas: list[Delta]) -> None:
    opposite = replace(
        deltas[0], matrices={}, factors={}, vectors={name: -deltas[0].difference(name) for name in base.specs}
    )
    alike, opposed = preview([deltas[0], deltas[0]], base), preview([deltas[0], opposite], base)
    assert alike.sign_conflicts == 0
    assert alike.cosines[0][1] == pytest.approx(1.0)
    assert opposed.sign_conflicts == 1
    assert opposed.cosines[0][1] == pytest.approx(-1.0)


def test_a_delta_of_nothing(base: Backbone, deltas: list[Delta]) -> None:
    empty = replace(deltas[0], matrices={}, factors={}, vectors={})
    found = preview([deltas[0], empty], base)
    assert found.norms[1] == 0
    assert found.cosines == ((1.0, 0.0), (0.0, 1.0))
    assert (found.sign_conflicts, found.along_base[1]) == (0, 0)
    assert preview([empty], base).kind_norms == {}


def test_uneven_lengths_are_warned_of(deltas: list[Delta]) -> None:
    method = METHODS["task_arithmetic"]
    long = replace(deltas[0], matrices={}, factors={}, vectors={"x": torch.tensor([2.5])})
    short = replace(long, vectors={"x": torch.tensor([1.0])})
    (warning,) = warnings_of(method, [long, short])
    assert "2.5 times as long" in warning
    assert warnings_of(method, [long, long]) == warnings_of(method, [long]) == ()
    (warning,) = warnings_of(method, [long, replace(long, vectors={"x": torch.zeros(1)})])
    assert warning.startswith("1 of 2 terms change no weight of the base, the head only if anything")


def test_sampled_deltas_are_warned_of_where_sizes_are_compared(
    llama: Path, finetune_folder: ModelFolder, tmp_path: Path, deltas: list[Delta]
) -> None:
    sampled = pico.delta(llama, finetune_folder("llama", seed=3), tmp_path / "s", method="random", density=0.2)
    (warning,) = warnings_of(METHODS["ties"], [sampled])
    assert "thins at random" in warning
    assert warnings_of(METHODS["ties"], deltas[:1]) == warnings_of(METHODS["linear"], [sampled]) == ()


def test_terms_below_the_density_where_a_method_fails(deltas: list[Delta]) -> None:
    def at(density: float) -> Delta:
        compression = deltas[0].manifest.compression.model_copy(update={"density": density})
        return replace(deltas[0], manifest=deltas[0].manifest.model_copy(update={"compression": compression}))

    (warning,) = warnings_of(METHODS["dare_linear"], [at(0.2), at(0.011), at(0.02)])
    assert "below 0.05" in warning and "2 of 3" in warning and "0.011" in warning
    assert warnings_of(METHODS["dare_linear"], [at(0.05), at(1.0)]) == ()
    assert warnings_of(METHODS["tsv_m"], [at(0.001)]) == warnings_of(METHODS["neuromerging"], [at(0.001)]) == ()
