"""Whether batches of several plans give what patched weights give: tried on the model itself, once, when it is loaded.

A random batch under two made-up merges, of two made-up deltas, runs both ways. An architecture that does something with
its rows that the layers cannot follow is found here, and is served by patches. Knows nothing of requests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from patchbay.backbone import Backbone
from patchbay.delta import Delta, Manifest, SparseRows
from patchbay.execute.active import ActivePlan, CompiledDelta, pack
from patchbay.execute.context import Batch, Segment, delta_context
from patchbay.execute.patch import Patcher
from patchbay.execute.trial import trial_inputs
from patchbay.merge import MatrixPlan, MergePlan

DENSITY = 0.02
ROWS, TOKENS = 4, 7  # different, so that a layer that takes one for the other is found
SEGMENTS = ((1,), (0, 3), (2,))  # base, first merge, second merge
# Of the merges' own effect on the output, by dtype: in bf16 a patch rounds W0 + D, which the other way does not.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}


@dataclass(frozen=True, slots=True)
class Proof:
    """`error`: |decoupled - patched| over |patched - base|, norms over the batch's output; None where it did not run.
    `layers`: how many layers run in which way. `reason` says why not, where it is not `ok`.
    """

    ok: bool
    error: float | None
    layers: Mapping[str, int]
    reason: str | None = None


def prove(backbone: Backbone, patcher: Patcher) -> Proof:
    """Runs the wrapped model both ways. Its weights are those from before, bit for bit, when this returns."""
    layers = Counter(
        next(base.__name__ for base in type(module).__mro__ if base.__module__ == "patchbay.execute.layers")
        for module in backbone.model.modules()
        if hasattr(module, "names")
    )
    try:
        inputs = trial_inputs(backbone, ROWS, TOKENS)
        deltas = [_delta(backbone, seed) for seed in (1, 2)]
        error = _error(backbone, patcher, inputs, deltas, [_plan(backbone, deltas, seed) for seed in (3, 4)])
    except Exception as failure:  # whatever a model does with rows that are not what it expects
        return Proof(False, None, layers, f"{type(failure).__name__}: {failure}")
    limit = TOLERANCE[backbone.model.dtype]
    if error <= limit:
        return Proof(True, error, layers)
    reason = f"the outputs differ by {error:.3g} of the merges' effect, and rounding is {limit:g} at most"
    return Proof(False, error, layers, reason)


@torch.no_grad()
def _error(
    backbone: Backbone,
    patcher: Patcher,
    inputs: Mapping[str, torch.Tensor],
    deltas: list[Delta],
    plans: list[MergePlan],
) -> float:
    compiled = tuple(CompiledDelta.of(delta, backbone) for delta in deltas)
    active = [None, *(ActivePlan(plan, compiled, backbone) for plan in plans)]
    batch = Batch(tuple(map(Segment, SEGMENTS, active)), backbone.device)
    base = _output(backbone.model, inputs)
    with delta_context(batch):
        decoupled = _output(backbone.model, inputs)
    patched = base.clone()
    for rows, plan in zip(SEGMENTS[1:], plans, strict=True):
        with patcher.patched(plan, deltas):
            patched[list(rows)] = _output(backbone.model, {key: value[list(rows)] for key, value in inputs.items()})
    effect = float((patched - base).double().norm())
    error = float((decoupled - patched).double().norm()) / effect if effect else math.inf
    return error if math.isfinite(error) else math.inf


def _output(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """fp32 [rows, ...]: logits where the model has them, or else what its last layer gives."""
    outputs = model(**inputs)
    found = outputs.logits if "logits" in outputs else outputs.last_hidden_state
    return torch.as_tensor(found).float()


def _delta(backbone: Backbone, seed: int) -> Delta:
    """Of every matrix a few entries, as large as the matrix's own, in one of the two nothing but signs; of every vector
    all, a tenth as large.
    """
    generator = torch.Generator().manual_seed(seed)
    matrices: dict[str, SparseRows] = {}
    vectors: dict[str, torch.Tensor] = {}
    for name, spec in backbone.specs.items():
        tensor = backbone.tensor(name)
        if not tensor.is_floating_point():
            continue
        size = float(tensor.float().square().mean().sqrt())
        if spec.is_matrix:
            count = max(1, round(DENSITY * spec.numel))
            positions = torch.unique(torch.randint(spec.numel, (count,), generator=generator))
            values = torch.randn(len(positions), generator=generator)
            values = size * (values.sign() if seed % 2 else values)
            matrices[name] = SparseRows(spec.shape, positions, values)
        else:
            # Upwards: a variance must stay positive.
            vectors[name] = 0.1 * size * torch.rand(spec.shape, generator=generator)
    return pack(Delta(_manifest(backbone), matrices, vectors, {}, {}, {}), backbone)


def _plan(backbone: Backbone, deltas: list[Delta], seed: int) -> MergePlan:
    """Every neuron with coefficients of its own."""
    generator = torch.Generator().manual_seed(seed)
    matrices: dict[str, MatrixPlan] = {}
    for name in deltas[0].matrices:
        axis = backbone.specs[name].neuron_axis
        neurons = 1 if axis is None else backbone.specs[name].shape[axis]
        scale = 1 + 0.1 * torch.rand(neurons, generator=generator)
        matrices[name] = MatrixPlan(scale, torch.rand(len(deltas), neurons, generator=generator))
    vectors = {name: torch.rand(1, generator=generator) * value for name, value in deltas[0].vectors.items()}
    return MergePlan(f"proof {seed}", tuple(map(str, range(len(deltas)))), matrices, vectors, {}, exact=False)


def _manifest(backbone: Backbone) -> Manifest:
    fields = {
        "format_version": 2,
        "base": {"name": "proof", "fingerprint": backbone.fingerprint},
        "compression": {"method": "random", "density": DENSITY},
        "statistics": {"relative_error": 0.0, "sigma": 0.0},
        "provenance": {"finetuned": "proof", "tool": "patchbay", "original_bytes": 0},
        "tensors": {},
        "payload_sha256": backbone.fingerprint,
    }
    return Manifest.model_validate(fields)
