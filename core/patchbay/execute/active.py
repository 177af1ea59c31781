"""A merge made ready to run beside others: kernels for its deltas, and merged values of what is no matrix.

Knows nothing of batches and layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from patchbay.architecture import TensorSpec
from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.delta.delta import KeptRows, apply_difference
from patchbay.delta.packed import PackedRows
from patchbay.execute.kernels import Kernel, compile_matrix
from patchbay.execute.kernels.dense import Dense
from patchbay.execute.kernels.packed import can_pack
from patchbay.merge import MergePlan
from patchbay.merge.parts import planned_matrix


@dataclass(frozen=True)
class CompiledDelta:
    """A delta with the kernels of its two-dimensional matrices, by name: none where it only ever runs by patches."""

    delta: Delta
    kernels: Mapping[str, Kernel]

    @classmethod
    def of(cls, delta: Delta, backbone: Backbone) -> CompiledDelta:
        specs = {name: backbone.specs[name] for name in (*delta.matrices, *delta.factors, *delta.vectors)}
        kernels = {
            name: compile_matrix(delta, name, spec, backbone.device)
            for name, spec in specs.items()
            if spec.is_matrix and len(spec.shape) == 2
        }
        return cls(delta, kernels)

    @cached_property
    def num_bytes(self) -> int:
        return self.delta.num_bytes + sum(kernel.num_bytes for kernel in self.kernels.values())


def pack(delta: Delta, backbone: Backbone) -> Delta:
    """The same delta with its kept entries as products read them, where this machine has the code for it: a third of
    the memory or less, and nothing to be made when it first runs.
    """
    matrices = {name: _packed(rows, backbone.specs[name], backbone.device) for name, rows in delta.matrices.items()}
    return replace(delta, matrices=matrices)


def _packed(rows: KeptRows, spec: TensorSpec, device: torch.device) -> KeptRows:
    transposed = spec.neuron_axis == 1
    if not spec.is_matrix or len(spec.shape) != 2 or not can_pack(spec.shape[0 if transposed else 1], device):
        return rows
    return PackedRows.of(rows.unpacked(), transposed=transposed)


Terms = Sequence[tuple[CompiledDelta, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class ActivePlan:
    """One recipe's plan with what its coefficients are for, in their order. What batches ask of it again and again is
    worked out once: coefficients, and merged vectors, but no merged matrix, which may be as large as the base's.
    """

    plan: MergePlan
    deltas: tuple[CompiledDelta, ...]
    backbone: Backbone
    _terms: dict[str, Terms] = field(default_factory=dict)
    _scales: dict[str, torch.Tensor | None] = field(default_factory=dict)
    _vectors: dict[str, torch.Tensor] = field(default_factory=dict)

    def changes(self, name: str) -> bool:
        return name in self.plan.matrices or name in self.plan.vectors or name in self.plan.copied

    @cached_property
    def _whole(self) -> Mapping[str, CompiledDelta]:
        """Matrices whose merged difference the plan itself holds, each as a delta of its own."""
        found: dict[str, CompiledDelta] = {}
        for name, difference in self.plan.vectors.items():
            spec = self.backbone.specs[name]
            if spec.is_matrix and len(spec.shape) == 2:
                whole = difference.T.contiguous() if spec.neuron_axis else difference
                found[name] = CompiledDelta(self.deltas[0].delta, {name: Dense(whole.to(self.backbone.device))})
        return found

    def terms(self, name: str) -> Terms:
        """The deltas that change a matrix, each with its coefficients [out] or [1], on the backbone's device."""
        if name not in self._terms:
            self._terms[name] = self._find_terms(name)
        return self._terms[name]

    def _find_terms(self, name: str) -> Terms:
        if name in self._whole:
            return [(self._whole[name], torch.ones(1, device=self.backbone.device))]
        if name not in self.plan.matrices:
            return []
        rows = self.plan.matrices[name].coefficients.to(self.backbone.device)
        return [(delta, row) for delta, row in zip(self.deltas, rows, strict=True) if name in delta.kernels]

    def base_scale(self, name: str) -> torch.Tensor | None:
        """[out] or [1]; None where it is 1."""
        if name not in self._scales:
            matrix = self.plan.matrices.get(name)
            plain = matrix is None or bool((matrix.base_scale == 1).all())
            self._scales[name] = None if matrix is None or plain else matrix.base_scale.to(self.backbone.device)
        return self._scales[name]

    def merged_matrix(self, name: str) -> torch.Tensor:
        """a W0 + sum_t C_t D_t of a linear layer: [out, in], however it is stored, in the base's dtype. Not kept."""
        base = self.backbone.tensor(name)
        stored = base.T if self.backbone.specs[name].neuron_axis == 1 else base
        dense = stored.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        scale = self.base_scale(name)
        if scale is not None:
            dense *= scale[:, None]
        for delta, coefficients in self.terms(name):
            delta.kernels[name].add_to(dense, coefficients)
        return dense.to(base.dtype)

    def merged(self, name: str) -> torch.Tensor:
        """The whole tensor under this plan, as a patch would write it, but for bits that only a patch restores."""
        if name in self._vectors:
            return self._vectors[name]
        found = _merged(self.backbone, name, self.plan, [delta.delta for delta in self.deltas])
        return found if found.dim() > 1 else self._vectors.setdefault(name, found)


def _merged(backbone: Backbone, name: str, plan: MergePlan, deltas: Sequence[Delta]) -> torch.Tensor:
    base = backbone.tensor(name)
    if name in plan.vectors:
        return apply_difference(base, plan.vectors[name].to(base.device), base.dtype)
    if name in plan.copied:
        return plan.copied[name].to(base)
    if name not in plan.matrices:
        return base
    return planned_matrix(name, plan.matrices[name], deltas, base, backbone.specs[name].neuron_axis or 0, base.dtype)
