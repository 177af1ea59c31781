"""How much each input column of a linear layer matters: the root mean square of what arrives there.

A changed weight acts through x_j tau_ij, so a sampled support that keeps by |tau_ij| rms(x_j) wastes less on columns
that are silent. Measured on the full fine-tune, on half of the calibration inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from patchbay.architecture import Kind
from patchbay.compress.calibration import Judge

EVERY = 2  # half of the batches, from the shortest inputs to the longest
STEPS = 4  # an octave: the grid on which a file stores scales
SMALLEST = 2.0**-8  # of the rms over columns: a column silent here may speak elsewhere


def column_scales(judge: Judge, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """For each linear layer rms(x_j) over its rms over j, on the file's logarithmic grid, broadcastable to the weight.

    [1, columns], or [rows, 1] for GPT-2's transposed layers. Other tensors are absent: their scale is 1.
    """
    specs = [judge.backbone.specs[name] for name in names]
    linear = [spec for spec in specs if spec.kind in (Kind.LINEAR, Kind.CONV1D)]
    sums: dict[str, torch.Tensor] = {}
    modules = {spec.name: judge.backbone.model.get_submodule(spec.parameter.rpartition(".")[0]) for spec in linear}
    hooks = [module.register_forward_pre_hook(_adder(sums, name)) for name, module in modules.items()]
    try:
        with judge.patched(judge.full):
            judge.run(EVERY)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        spec.name: _on_grid(sums[spec.name]).unsqueeze(spec.neuron_axis or 0) for spec in linear if spec.name in sums
    }


def _adder(sums: dict[str, torch.Tensor], name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach().float().flatten(0, -2)
        total = x.square().sum(0).cpu()
        sums[name] = sums[name] + total if name in sums else total

    return add


def _on_grid(squares: torch.Tensor) -> torch.Tensor:
    relative = (squares / squares.mean().clamp(min=1e-30)).sqrt().clamp(min=SMALLEST)
    return torch.exp2((torch.log2(relative) * STEPS).round() / STEPS)
