"""A bound on the file's size or on the divergence is held by the file that is written."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests import pico
from tests.compress.problems import texts

from patchbay.backbone import Backbone
from patchbay.compress.calibration import Calibration, Judge
from patchbay.compress.compress import Options, Report, compress
from patchbay.compress.targets import _secant
from patchbay.delta import DeltaFile, read_delta
from patchbay.errors import InvalidRecipe

ModelFolder = Callable[..., Path]
INPUTS = Calibration(texts(10))
METHODS: list[dict[str, Any]] = [
    {"method": "nps"},
    {"method": "nps", "support": "topk"},
    {"method": "magnitude", "values": "bf16"},
    {"method": "random"},
]
LOW_RANK = {"method": "low_rank"}  # a second a file
FEW = settings(
    max_examples=1, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def fit(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> Callable[..., Report]:
    """`fit(target_size=9000)` on a language model of one layer; nothing but the file is left beside it."""
    base, tuned, out = model_folder("llama", layers=1), finetune_folder("llama", layers=1), tmp_path / "out" / "d"

    def compressed(calibration: Calibration | None = None, **options: Any) -> Report:
        report = compress(base, tuned, out, Options(**options), calibration=calibration)
        assert [path.name for path in out.parent.iterdir()] == ["d"]
        assert report.num_bytes == out.stat().st_size
        return report

    return compressed


@pytest.mark.parametrize("options", METHODS)
@given(share=st.floats(0, 1))
@example(share=0.001)
@example(share=0.999)
@FEW
def test_size_is_never_exceeded_and_nearly_reached(
    fit: Callable[..., Report], options: dict[str, Any], share: float
) -> None:
    """Any size between that of nothing kept and that of everything kept, within 3 % or 100 bytes of it."""
    check_size(fit, options, share)


def test_size_of_singular_vectors(fit: Callable[..., Report]) -> None:
    check_size(fit, LOW_RANK, 0.6)


def check_size(fit: Callable[..., Report], options: dict[str, Any], share: float) -> None:
    empty, everything = (fit(**options, density=density).num_bytes for density in (0.0, 1.0))
    target = int(empty + share * (everything - empty))
    report = fit(**options, target_size=target)
    assert report.num_bytes <= target
    assert report.num_bytes >= 0.97 * target - 100


@pytest.mark.parametrize("options", [*METHODS, {"method": "bitdelta"}])
def test_sizes_beyond_everything_keep_everything(fit: Callable[..., Report], options: dict[str, Any]) -> None:
    report = fit(**options, target_size=10**6)
    assert report.num_bytes <= 10**6
    assert report.density == 1.0


@pytest.mark.parametrize("options", [*METHODS, {"method": "bitdelta"}])
def test_sizes_below_nothing_are_refused_with_the_number(fit: Callable[..., Report], options: dict[str, Any]) -> None:
    least = fit(**options, **pico.at_density(options["method"], 0.0)).num_bytes
    with pytest.raises(
        InvalidRecipe, match=f"{least - 1} bytes are too few: the smallest file takes {least};"
    ) as caught:
        fit(**options, target_size=least - 1)
    assert caught.value.param == "target_size"
    # How precisely numbers are written in the manifest makes a byte or two.
    assert fit(**options, target_size=least + 16).num_bytes <= least + 16


def test_refusal_writes_nothing(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> None:
    out = tmp_path / "out" / "d"
    with pytest.raises(InvalidRecipe, match="too few"):
        compress(model_folder("llama"), finetune_folder("llama"), out, Options(target_size=10))
    assert list(tmp_path.rglob("out*")) == []


@pytest.mark.parametrize("support", ["sampled", "topk"])
def test_search_ends_within_the_size(fit: Callable[..., Report], support: str) -> None:
    """Whatever weights it finds."""
    report = fit(INPUTS, support=support, target_size=9000, evaluations=12)
    assert 0.95 * 9000 <= report.num_bytes <= 9000
    assert 10 <= report.evaluations <= 12


def divergence(base: Path, tuned: Path, file: Path, out: Path) -> float:
    full = pico.delta(base, tuned, out / "full", density=1.0, values="fp32")
    backbone = Backbone.load(base, device="cpu")
    return Judge(backbone, full, INPUTS).divergence(read_delta(file, backbone.specs, backbone.fingerprint))


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"method": "nps", "evaluations": 0}, 0.5),
        ({"method": "nps", "evaluations": 8}, 0.5),
        ({"method": "nps", "evaluations": 8}, 0.3),
        ({"method": "nps", "support": "topk", "evaluations": 6, "values": "fp32"}, 0.1),
        ({"method": "magnitude"}, 0.1),
        ({"method": "magnitude"}, 0.5),
        ({"method": "magnitude", "values": "sign"}, 0.5),
        ({"method": "random", "values": "bf16"}, 0.5),
        ({"method": "low_rank"}, 0.5),
    ],
)
def test_divergence_of_the_file_is_within_its_bound(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, options: dict[str, Any], share: float
) -> None:
    base, tuned = model_folder("llama", layers=1), finetune_folder("llama", layers=1, scale=0.02)
    empty = pico.delta_file(base, tuned, tmp_path / "empty", density=0.0)
    target = share * divergence(base, tuned, empty, tmp_path)
    report = compress(base, tuned, tmp_path / "d", Options(**options, target_kl=target), calibration=INPUTS)
    assert divergence(base, tuned, tmp_path / "d", tmp_path) <= target
    assert 0 < report.density < 1


def test_a_tuned_file_is_held_to_the_bound_too(llama: Path, tmp_path: Path) -> None:
    """Tuning lowers the divergence where it looks, which is on some batches, and before values are encoded."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        sizes = {name: 0.2 if tensor.dim() == 1 else 0.02 for name, tensor in tensors.items()}
        return {n: t + sizes[n] * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}

    tuned, words = pico.rewrite(llama, tmp_path / "tuned", change), random.Random(0)
    long = Calibration(tuple(" ".join(words.choices(pico.WORDS, k=words.randint(150, 250))) for _ in range(24)))
    for target in (2.86e-4, 2.89e-4, 2.92e-4):  # where tuning goes wrong
        report = compress(llama, tuned, tmp_path / "d", Options(target_kl=target, evaluations=0), calibration=long)
        assert report.divergence is not None and report.divergence <= target


def few_changes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One entry in twenty."""
    generator = torch.Generator().manual_seed(0)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 0.01 * torch.randn(tensor.shape, generator=generator) * (
            torch.rand(tensor.shape, generator=generator) < 0.05
        )

    return {name: change(tensor) if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("support", ["sampled", "topk"])
@pytest.mark.parametrize("target", [1e-3, 1e-5])
def test_divergence_is_bounded_whatever_was_searched_for(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, support: Any, target: float
) -> None:
    """Weights found for labels' likelihood may reach a divergence at no density."""
    base, tuned = model_folder("bert_classifier"), finetune_folder("bert_classifier")
    names = Backbone.load(tuned, device="cpu").labels
    assert names
    labelled = replace(INPUTS, labels=tuple(names[number % len(names)] for number in range(len(INPUTS.inputs))))
    options = Options(
        target_kl=target, score="log_likelihood", evaluations=15, support=support, values="fp32", distil=False
    )
    try:
        compress(base, tuned, tmp_path / "d", options, calibration=labelled)
    except InvalidRecipe as error:
        assert "not reached at density 1" in error.message
    else:
        assert divergence(base, tuned, tmp_path / "d", tmp_path) <= 1.01 * target


def test_a_size_that_cannot_grow_is_met(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    """Where most entries did not change, all that did are kept long before density 1, and sizes hardly differ."""
    base, tuned = model_folder("llama", layers=1), tmp_path / "tuned"
    pico.rewrite(base, tuned, few_changes)
    whole = pico.delta_file(base, tuned, tmp_path / "whole", method="nps", density=1.0)
    for factor in (1.01, 1.22, 1.5, 3.0):
        report = compress(base, tuned, tmp_path / "d", Options(target_size=int(factor * whole.stat().st_size)))
        assert report.num_bytes <= factor * whole.stat().st_size


def test_smaller_densities_would_not_do(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    base, tuned = model_folder("llama", layers=1), finetune_folder("llama", layers=1, scale=0.02)
    options = {"method": "magnitude", "values": "fp32"}
    empty = pico.delta_file(base, tuned, tmp_path / "empty", density=0.0)
    target = 0.3 * divergence(base, tuned, empty, tmp_path)
    found = compress(base, tuned, tmp_path / "d", Options(**options, target_kl=target), calibration=INPUTS).density
    less = pico.delta_file(base, tuned, tmp_path / "less", **options, density=0.92 * found)
    assert divergence(base, tuned, less, tmp_path) > target


def test_divergence_needs_calibration_inputs_and_a_reachable_bound(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    base, tuned = model_folder("llama", layers=1), finetune_folder("llama", layers=1)
    with pytest.raises(InvalidRecipe, match="give some") as caught:
        compress(base, tuned, tmp_path / "d", Options(target_kl=0.1))
    assert caught.value.param == "target_kl"
    with pytest.raises(InvalidRecipe, match="not reached at density 1"):
        compress(
            base, tuned, tmp_path / "d", Options(method="magnitude", scale=0.1, target_kl=1e-9), calibration=INPUTS
        )
    assert not (tmp_path / "d").exists()


def test_fitted_file_is_whole(fit: Callable[..., Report], model_folder: ModelFolder, tmp_path: Path) -> None:
    report = fit(target_size=8000)
    backbone = Backbone.load(model_folder("llama", layers=1), device="cpu")
    delta = read_delta(tmp_path / "out" / "d", backbone.specs, backbone.fingerprint)
    assert delta.manifest.compression.density == report.density
    DeltaFile.open(tmp_path / "out" / "d").check_payload()


def test_sizes_that_hardly_differ_say_nothing_of_the_next_density() -> None:
    assert _secant((0.316, 3596.0), (0.632, 3597.0), 4400.0) == 0.0  # and no overflow
    assert _secant((0.1, 100.0), (0.2, 200.0), 400.0) == pytest.approx(0.4)


def test_what_a_model_is_called_does_not_change_what_is_kept(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    base, tuned = model_folder("bert_classifier"), finetune_folder("bert_classifier")
    same = shutil.copytree(tuned, tmp_path / "the-same-model-under-a-name-that-is-a-good-deal-longer")
    kept = []
    for number, folder in enumerate((tuned, same)):
        compress(
            base, folder, tmp_path / f"{number}.delta", Options(target_size=9000, evaluations=8), calibration=INPUTS
        )
        backbone = Backbone.load(base, device="cpu")
        kept.append(read_delta(tmp_path / f"{number}.delta", backbone.specs, backbone.fingerprint))
    assert kept[0].manifest.provenance != kept[1].manifest.provenance
    assert kept[0].manifest.compression == kept[1].manifest.compression
    for name in kept[0].matrices | kept[0].vectors | kept[0].factors:
        assert torch.equal(kept[0].difference(name), kept[1].difference(name))
