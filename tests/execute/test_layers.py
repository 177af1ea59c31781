"""A row of a mixed batch is the same row under patched weights, whatever the others run under."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import pico
from tests.execute.mixed import decoupled, inputs_for, outputs, patched, ready

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.execute.context import Batch, Segment, delta_context
from patchbay.execute.wrap import wrap

ModelFolder = Callable[..., Path]
World = tuple[Backbone, dict[str, Delta]]
NAMES = ["llama", "gpt2", "bert_classifier", "bert_encoder", "vit", "clip_vision", "resnet"]
KINDS: Mapping[str, dict[str, object]] = {
    "a": {"density": 0.2},
    "b": {"method": "random", "density": 0.3, "values": "sign"},
    "c": {"method": "low_rank", "density": 0.3},
    "d": {"method": "lossless"},
    "e": {"method": "bitdelta"},
}
RECIPES = (
    None,
    "a",
    "-0.5*b",
    "0.6*a + 0.4*b - 0.2*c",
    "d",
    "linear(a, 2*d)",
    "neuromerging(a, b, c)",
    "neuromerging(b, d)",
    "slerp(a, c)",
    "ties(a, b; density=0.5)",
    "tsv_m(a, c)",
    "e",
)


@pytest.fixture(scope="module")
def world(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., World]:
    """A wrapped model of each layout with a delta of each kind."""
    made: dict[tuple[str, torch.dtype], World] = {}

    def make(name: str, dtype: torch.dtype = torch.float32) -> World:
        if (name, dtype) not in made:
            base, folder = model_folder(name, dtype=dtype), tmp_path_factory.mktemp("deltas")
            tuned = {kind: finetune_folder(name, seed, dtype=dtype) for seed, kind in enumerate(KINDS, 1)}
            deltas = {kind: pico.delta(base, tuned[kind], folder / kind, **KINDS[kind]) for kind in KINDS}
            backbone = Backbone.load(base, device="cpu")
            wrap(backbone)
            made[name, dtype] = (backbone, deltas)
        return made[name, dtype]

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_what_patched_weights_answer(world: Callable[..., World], name: str) -> None:
    backbone, deltas = world(name)
    plans = [ready(backbone, recipe, deltas) for recipe in RECIPES]
    order = torch.randperm(2 * len(plans), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [order[2 * number : 2 * number + 2] for number in range(len(plans))]
    inputs = inputs_for(backbone, len(order))
    found, expected = decoupled(backbone, inputs, rows, plans), patched(backbone, inputs, rows, plans)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    effect = (expected - outputs(backbone, inputs)).abs().flatten(1).amax(1)
    assert all(float(effect[each].min()) > 1e-3 for each in rows[1:])  # there is something to get wrong
    assert backbone.compute_digest() == backbone.resident_digest


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_classifier", "vit"])
def test_plans_of_many_inputs(world: Callable[..., World], name: str) -> None:
    """Their matrices are merged for the products; the base and plans of few rows run beside them."""
    backbone, deltas = world(name)
    plans = [ready(backbone, recipe, deltas) for recipe in (None, *RECIPES[3:5], "ties(a, b; density=0.5)", "b")]
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1)).tolist()
    cuts = (0, 3, 203, 205, 398, 400)
    rows = [order[start:end] for start, end in pairwise(cuts)]
    inputs = inputs_for(backbone, len(order))
    found, expected = decoupled(backbone, inputs, rows, plans), patched(backbone, inputs, rows, plans)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all(float((expected - outputs(backbone, inputs))[each].abs().max()) > 1e-3 for each in rows[1:])


@pytest.mark.parametrize("name", ["llama", "bert_classifier", "vit"])
def test_in_bf16_within_rounding(world: Callable[..., World], name: str) -> None:
    backbone, deltas = world(name, torch.bfloat16)
    plans = [ready(backbone, recipe, deltas) for recipe in RECIPES]
    rows = [[number] for number in range(len(plans))]
    inputs = inputs_for(backbone, len(rows))
    found, expected = decoupled(backbone, inputs, rows, plans), patched(backbone, inputs, rows, plans)
    effect = (expected - outputs(backbone, inputs)).norm()
    assert float((found - expected).norm()) < 0.2 * float(effect)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.lists(st.integers(0, len(RECIPES) - 1), min_size=1, max_size=7), seed=st.integers(0, 1000))
def test_any_mix(world: Callable[..., World], chosen: list[int], seed: int) -> None:
    """Also the same recipe in several segments, and one row a batch."""
    backbone, deltas = world("llama")
    plans = [ready(backbone, RECIPES[number], deltas) for number in chosen]
    order = torch.randperm(len(plans), generator=torch.Generator().manual_seed(seed)).tolist()
    inputs, rows = inputs_for(backbone, len(order), seed), [[row] for row in order]
    torch.testing.assert_close(
        decoupled(backbone, inputs, rows, plans), patched(backbone, inputs, rows, plans), rtol=1e-4, atol=1e-5
    )


def test_a_row_does_not_see_the_others(world: Callable[..., World]) -> None:
    """Not even NaN."""
    backbone, deltas = world("llama")
    huge = {**deltas, "a": times(deltas["a"], float("nan"))}
    inputs, rows = inputs_for(backbone, 3), [[0], [1], [2]]
    beside = decoupled(backbone, inputs, rows, [ready(backbone, each, deltas) for each in (None, "b", "a")])
    poisoned = decoupled(backbone, inputs, rows, [ready(backbone, each, huge) for each in (None, "b", "a")])
    assert poisoned[2].isnan().all()
    assert torch.equal(poisoned[:2], beside[:2])


def times(delta: Delta, factor: float) -> Delta:
    matrices = {name: replace(rows, values=rows.values * factor) for name, rows in delta.matrices.items()}
    return replace(delta, matrices=matrices)


def test_outside_of_a_batch_the_model_is_as_it_was(world: Callable[..., World], model_folder: ModelFolder) -> None:
    for name in NAMES:
        backbone, _ = world(name)
        plain = Backbone.load(model_folder(name), device="cpu")
        inputs = inputs_for(backbone, 3)
        assert torch.equal(outputs(backbone, inputs), outputs(plain, inputs))
        assert backbone.model.state_dict().keys() == plain.model.state_dict().keys()


def test_rows_that_cannot_be_told_are_refused(world: Callable[..., World]) -> None:
    backbone, deltas = world("llama")
    plan = ready(backbone, "a", deltas).plan
    batch = Batch((Segment((0, 1), plan),), backbone.device)
    with delta_context(batch), pytest.raises(ValueError, match="in a batch of 2 rows"):
        outputs(backbone, inputs_for(backbone, 3))
