from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.execute.mixed import decoupled, inputs_for, ready

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.errors import PatchInProgress
from patchbay.execute.context import Batch, Segment, delta_context, running
from patchbay.execute.kernels.sparse import Sparse
from patchbay.execute.wrap import wrap

ModelFolder = Callable[..., Path]
CPU = torch.device("cpu")
EMPTY = Batch((Segment((0,), None),), CPU)


@pytest.fixture
def world(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> tuple[Backbone, dict[str, Delta]]:
    base = model_folder("llama")
    backbone = Backbone.load(base, device="cpu")
    wrap(backbone)
    deltas = {
        name: pico.delta(base, finetune_folder("llama", seed), tmp_path / name, density=0.2)
        for seed, name in enumerate("ab", 1)
    }
    return backbone, deltas


def test_nesting_is_refused() -> None:
    with delta_context(EMPTY), pytest.raises(PatchInProgress), delta_context(EMPTY):
        pass
    assert running() is None


def test_it_ends_with_an_exception_too() -> None:
    with pytest.raises(RuntimeError, match="inside"), delta_context(EMPTY):
        raise RuntimeError("inside")
    assert running() is None


def test_other_threads_do_not_see_it() -> None:
    seen: list[Batch | None] = []
    with delta_context(EMPTY):
        thread = threading.Thread(target=lambda: seen.append(running()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize(
    ("shape", "split"),
    [((3, 5, 4), (3, 5, 4)), ((3, 4), (3, 1, 4)), ((15, 4), (3, 5, 4)), ((3, 5, 2, 4), (3, 10, 4))],
)
def test_the_shapes_in_which_layers_see_rows(shape: tuple[int, ...], split: tuple[int, ...]) -> None:
    batch = Batch((Segment((0, 2), None), Segment((1,), None)), CPU)
    x = torch.arange(torch.Size(shape).numel()).reshape(shape)
    assert batch.split(x).shape == split
    assert torch.equal(batch.split(x).flatten(), x.flatten())


@pytest.mark.parametrize("shape", [(2, 5, 4), (4, 4), (6, 5, 4)])
def test_shapes_in_which_nobody_can_tell_rows(shape: tuple[int, ...]) -> None:
    batch = Batch((Segment((0, 1, 2), None),), CPU)
    with pytest.raises(ValueError, match="in a batch of 3 rows"):
        batch.split(torch.zeros(shape))


def test_a_delta_is_multiplied_once_for_all_recipes_that_use_it(
    world: tuple[Backbone, dict[str, Delta]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight recipes over two deltas cost two products a layer."""
    backbone, deltas = world
    shared = {name: ready(backbone, name, deltas).plan.deltas[0] for name in deltas}  # type: ignore[union-attr]
    plans = []
    for number in range(8):
        plan = ready(backbone, f"0.{number + 1}*a + {number + 1}*b", deltas)
        digests = [term for term, _ in zip(plan.merged.plan.terms, plan.terms, strict=True)]  # type: ignore[union-attr]
        object.__setattr__(plan.plan, "deltas", tuple(shared[digest] for digest in digests))
        plans.append(plan)
    calls: list[int] = []
    product = Sparse.product
    monkeypatch.setattr(Sparse, "product", lambda self, x: calls.append(len(x)) or product(self, x))
    inputs = inputs_for(backbone, 8)
    decoupled(backbone, inputs, [[row] for row in range(8)], plans)
    assert len(calls) == 2 * len(deltas["a"].matrices)
    assert set(calls) == {8 * inputs["input_ids"].shape[1]}
