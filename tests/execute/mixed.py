"""One batch under many recipes, and the same rows under patched weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tests import pico

from patchbay.architecture import Task
from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.execute.active import ActivePlan, CompiledDelta
from patchbay.execute.context import Batch, Segment, delta_context
from patchbay.execute.patch import Patcher
from patchbay.merge import Merged, build, parse, settled


@dataclass(frozen=True)
class Ready:
    """A recipe of terms "a", "b", ... made ready both ways; the base where `merged` is None."""

    merged: Merged | None
    terms: Sequence[Delta]
    plan: ActivePlan | None


def ready(backbone: Backbone, expression: str | None, deltas: Mapping[str, Delta]) -> Ready:
    if expression is None:
        return Ready(None, (), None)
    recipe = parse(expression)
    names = [term.delta for term in recipe.terms]
    canonical = settled(recipe, {name: name for name in names})
    terms = [deltas[digest] for digest, _ in canonical.terms]
    merged = build(canonical, terms, backbone)
    compiled = tuple(CompiledDelta.of(delta, backbone) for delta in merged.deltas(terms))
    return Ready(merged, terms, ActivePlan(merged.plan, compiled, backbone))


def inputs_for(backbone: Backbone, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if backbone.model.main_input_name == "pixel_values":
        dtype = next(backbone.model.parameters()).dtype
        return {"pixel_values": torch.randn(rows, 3, pico.IMAGE, pico.IMAGE, generator=generator).to(dtype)}
    ids = torch.randint(4, pico.VOCAB, (rows, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def outputs(backbone: Backbone, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found = backbone.model(**inputs)  # type: ignore[operator]
    plain = backbone.task is Task.EMBEDDING
    return torch.as_tensor(found.last_hidden_state if plain else found.logits).float()


def decoupled(
    backbone: Backbone, inputs: Mapping[str, torch.Tensor], rows: Sequence[Sequence[int]], plans: Sequence[Ready]
) -> torch.Tensor:
    segments = tuple(Segment(tuple(each), plan.plan) for each, plan in zip(rows, plans, strict=True))
    with delta_context(Batch(segments, backbone.device)):
        return outputs(backbone, inputs)


def patched(
    backbone: Backbone, inputs: Mapping[str, torch.Tensor], rows: Sequence[Sequence[int]], plans: Sequence[Ready]
) -> torch.Tensor:
    found = outputs(backbone, inputs)
    patcher = Patcher(backbone)
    for each, plan in zip(rows, plans, strict=True):
        if plan.merged is not None:
            alone = {key: value[list(each)] for key, value in inputs.items()}
            with patcher.patched(plan.merged.plan, plan.merged.deltas(plan.terms)):
                found[list(each)] = outputs(backbone, alone)
    return found
