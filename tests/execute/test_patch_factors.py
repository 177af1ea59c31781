"""Tensors that a delta stores as factors, alone or under kept entries: patched as their dense difference would be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.delta.hybrids import KINDS, hybrid_delta

from patchbay.backbone import Backbone
from patchbay.compress.reconstruct import reconstruct
from patchbay.delta import Delta
from patchbay.delta.delta import apply_difference
from patchbay.execute.patch import Patcher
from patchbay.merge import MatrixPlan, MergePlan

ModelFolder = Callable[..., Path]
DTYPES = [torch.float32, torch.bfloat16]
LAYER = "model.layers.0.mlp"
NAME = f"{LAYER}.up_proj.weight"
FACTORED = {
    NAME: "hybrid",
    f"{LAYER}.down_proj.weight": "low_rank",
    f"{LAYER}.gate_proj.weight": "sparse",
    "model.norm.weight": "whole",
}
# Neurons along the rows, along the columns, and of a convolution's filters.
PLACES = [
    ("llama", NAME),
    ("llama", "model.embed_tokens.weight"),
    ("gpt2", "transformer.h.0.attn.c_attn.weight"),
    ("vit", "vit.embeddings.patch_embeddings.projection.weight"),
]


def load(folder: Path) -> Backbone:
    return Backbone.load(folder, device="cpu")


def patched(backbone: Backbone, plan: MergePlan, deltas: list[Delta]) -> dict[str, torch.Tensor]:
    """All tensors inside; that the weights are the base's again, behind it."""
    with Patcher(backbone).patched(plan, deltas):
        inside = {name: backbone.tensor(name).clone() for name in backbone.specs}
        assert backbone.compute_digest() != backbone.resident_digest
    assert backbone.compute_digest() == backbone.resident_digest
    return inside


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_difference_is_added_in_fp32_and_rounded_once(
    model_folder: ModelFolder, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = model_folder("llama", dtype=dtype)
    delta, backbone, base = hybrid_delta(folder, tmp_path / "d", FACTORED), load(folder), pico.weights(folder)
    assert (set(delta.factors), set(delta.matrices) & set(delta.factors)) == ({*list(FACTORED)[:2]}, {NAME})
    found = patched(backbone, pico.plan([delta], [1.0]), [delta])
    for name, tensor in found.items():
        expected = base[name]
        if name in FACTORED:
            expected = (base[name].float() + delta.difference(name)).to(dtype)
            assert not torch.equal(tensor, base[name]), name
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("model", "name"), PLACES)
@pytest.mark.parametrize("kind", ["hybrid", "low_rank"])
def test_patched_is_the_reconstructed_model(
    model_folder: ModelFolder, tmp_path: Path, model: str, name: str, kind: str, dtype: torch.dtype
) -> None:
    folder = model_folder(model, dtype=dtype)
    delta = hybrid_delta(folder, tmp_path / "d", {name: kind})
    reconstruct(tmp_path / "d", folder, tmp_path / "rebuilt")
    backbone, expected = load(folder), load(tmp_path / "rebuilt")
    with Patcher(backbone).patched(pico.plan([delta], [1.0]), [delta]):
        assert backbone.compute_digest() == expected.resident_digest
    assert backbone.compute_digest() == backbone.resident_digest != expected.resident_digest


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kinds", list(permutations(KINDS, 2)), ids="-".join)
def test_a_merge_is_summed_in_fp32_and_rounded_once(
    model_folder: ModelFolder, tmp_path: Path, kinds: tuple[str, str], dtype: torch.dtype
) -> None:
    """One tensor, stored in another way by each delta."""
    folder, weights = model_folder("llama", dtype=dtype), (0.6, -0.35)
    deltas = [hybrid_delta(folder, tmp_path / kind, {NAME: kind}, seed=n) for n, kind in enumerate(kinds)]
    plan, base = pico.plan(deltas, weights), pico.weights(folder)
    found = patched(load(folder), plan, deltas)
    halves = [weight * delta.difference(NAME) for weight, delta in zip(weights, deltas, strict=True)]
    assert torch.equal(found[NAME], apply_difference(base[NAME], halves[0] + halves[1], dtype))
    assert all(torch.equal(found[name], base[name]) for name in base if name != NAME)


@pytest.mark.parametrize("dtype", DTYPES)
def test_three_of_all_kinds_merge(model_folder: ModelFolder, tmp_path: Path, dtype: torch.dtype) -> None:
    folder, weights = model_folder("llama", dtype=dtype), (0.5, 2.0, -1.0)
    order = ("hybrid", "sparse", "whole")
    deltas = [hybrid_delta(folder, tmp_path / kind, {NAME: kind}, seed=n) for n, kind in enumerate(order)]
    found = patched(load(folder), pico.plan(deltas, weights), deltas)
    total = torch.zeros(())
    for weight, delta in zip(weights, deltas, strict=True):
        total = total + weight * delta.difference(NAME)
    assert torch.equal(found[NAME], apply_difference(pico.weights(folder)[NAME], total, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("model", "name"), PLACES)
@pytest.mark.parametrize("base_scale", [1.0, 0.75, None], ids=["one", "number", "rows"])
def test_coefficients_and_base_scales_are_neuron_by_neuron(
    model_folder: ModelFolder, tmp_path: Path, model: str, name: str, dtype: torch.dtype, base_scale: float | None
) -> None:
    folder = model_folder(model, dtype=dtype)
    deltas = [hybrid_delta(folder, tmp_path / k, {name: k}, seed=n) for n, k in enumerate(("hybrid", "low_rank"))]
    backbone, base = load(folder), pico.weights(folder)[name]
    axis, generator = backbone.specs[name].neuron_axis or 0, torch.Generator().manual_seed(0)
    along = [-1 if dim == axis else 1 for dim in range(base.dim())]
    scale = (
        torch.rand(base.shape[axis], generator=generator) + 0.5 if base_scale is None else torch.tensor([base_scale])
    )
    rows = MatrixPlan(scale, torch.randn(2, base.shape[axis], generator=generator))
    plan = replace(pico.plan(deltas, [1.0, 1.0]), matrices={name: rows})
    parts = zip(rows.coefficients, deltas, strict=True)
    first, second = (c.reshape(along) * delta.difference(name) for c, delta in parts)
    by_base = scale.reshape(along) if base_scale is None else scale
    expected = (by_base * base.float() + (first + second)).to(dtype)
    assert torch.equal(patched(backbone, plan, deltas)[name], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["hybrid", "low_rank"])
def test_exceptions_replace_what_the_sum_does_not_reach(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    """They hold at weight 1 and are ignored at any other; here they make a random difference lossless."""
    folder, tuned = model_folder("llama", dtype=dtype), pico.weights(finetune_folder("llama", dtype=dtype))
    delta, backbone = hybrid_delta(folder, tmp_path / "d", {NAME: kind}, tuned=tuned), load(folder)
    assert len(delta.exceptions[NAME].positions) > 100
    assert torch.equal(patched(backbone, pico.plan([delta], [1.0]), [delta])[NAME], tuned[NAME])
    half = apply_difference(pico.weights(folder)[NAME], 0.5 * delta.difference(NAME), dtype)
    assert torch.equal(patched(backbone, pico.plan([delta], [0.5]), [delta])[NAME], half)
    reconstruct(tmp_path / "d", folder, tmp_path / "rebuilt")
    assert torch.equal(pico.weights(tmp_path / "rebuilt")[NAME], tuned[NAME])


def test_a_body_that_raises_leaves_no_trace(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = model_folder("llama", dtype=torch.bfloat16)
    delta, backbone = hybrid_delta(folder, tmp_path / "d", FACTORED), load(folder)
    pico.plant([backbone.tensor(name) for name in FACTORED], start=1)
    clean = backbone.compute_digest()
    with pytest.raises(InterruptedError), Patcher(backbone).patched(pico.plan([delta], [1.0]), [delta]):
        assert backbone.compute_digest() != clean
        raise InterruptedError
    assert backbone.compute_digest() == clean


def test_a_fine_tune_of_another_dtype_is_rounded_to_the_residents(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = model_folder("llama")
    delta, backbone = hybrid_delta(folder, tmp_path / "d", {NAME: "hybrid"}), Backbone.load(folder, dtype="bf16")
    found = patched(backbone, pico.plan([delta], [1.0]), [delta])[NAME]
    base = pico.weights(folder)[NAME].bfloat16()
    assert torch.equal(found, (base.float() + delta.difference(NAME)).bfloat16())
