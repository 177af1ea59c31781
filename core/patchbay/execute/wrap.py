"""Makes a resident model's layers ready for batches of several plans, in place. Knows nothing of plans."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from patchbay.backbone import Backbone
from patchbay.execute.layers import DeltaConv1D, DeltaEmbedding, DeltaLinear, DeltaNorm, PerPlan

DELTA_CLASS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: DeltaLinear,
    Conv1D: DeltaConv1D,
    nn.Embedding: DeltaEmbedding,
}


def wrap(backbone: Backbone) -> None:
    """Gives every layer that has a checkpoint's tensors of its own the class that runs several plans at once.

    Memory, names and what the model answers outside of a `delta_context` stay as they are. A second time does
    nothing.
    """
    places = {place: spec.name for spec in backbone.specs.values() for place in (spec.parameter, *spec.tied)}
    for path, module in list(backbone.model.named_modules()):
        own = {
            key: places[full]
            for key in (*module._parameters, *module._buffers)
            if (full := f"{path}.{key}" if path else key) in places
        }
        if own and not hasattr(module, "names"):
            _wrap(module, own)


def _wrap(module: nn.Module, names: Mapping[str, str]) -> None:
    original = type(module)
    found = DELTA_CLASS.get(original)
    if found is None:
        shadow = copy.copy(module)
        scale = _affine(shadow)
        # Past nn.Module, which would take them for parts of the model.
        if scale is None:
            object.__setattr__(module, "shadow", shadow)
        else:
            object.__setattr__(module, "unit", scale[0])
            object.__setattr__(module, "zero_centred", scale[1])
        found = type(f"Delta{original.__name__}", (PerPlan if scale is None else DeltaNorm, original), {})
    object.__setattr__(module, "names", names)
    module.__class__ = found


def _affine(layer: nn.Module) -> tuple[nn.Module, bool] | None:
    """The same layer with neutral weights, and whether those are 0: of one that multiplies what it made of each token
    by its weight, or by 1 + weight, and adds its bias. None for any other.
    """
    weight = layer._parameters.get("weight")
    if set(layer._parameters) - {"weight", "bias"} or layer._modules or weight is None or weight.dim() != 1:
        return None
    probe = torch.randn(2, 3, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    for zero_centred in (False, True):
        unit = copy.copy(layer)
        neutral = torch.full_like(weight, 0.0 if zero_centred else 1.0)
        unit._parameters = {**layer._parameters, "weight": nn.Parameter(neutral, requires_grad=False)}
        if layer._parameters.get("bias") is not None:
            unit._parameters["bias"] = nn.Parameter(torch.zeros_like(weight), requires_grad=False)
        if _is_product(layer, unit, probe, zero_centred):
            return unit, zero_centred
    return None


@torch.no_grad()
def _is_product(layer: nn.Module, unit: nn.Module, probe: torch.Tensor, zero_centred: bool) -> bool:
    drawn = copy.copy(layer)
    values = torch.randn(probe.shape[-1], generator=torch.Generator().manual_seed(1)).to(probe)
    drawn._parameters = {**layer._parameters, "weight": nn.Parameter(values, requires_grad=False)}
    bias = layer._parameters.get("bias")
    try:
        expected = unit(probe) * (1 + values if zero_centred else values) + (0 if bias is None else bias)
        found: torch.Tensor = drawn(probe)
    except (RuntimeError, ValueError, IndexError):  # it takes another kind of input
        return False
    tolerance = 1e-5 if probe.dtype == torch.float32 else 0.05
    return found.shape == expected.shape and bool(torch.allclose(found, expected, rtol=tolerance, atol=tolerance))
