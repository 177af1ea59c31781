"""A PEFT adapter (LoRA, DoRA, (IA)^3) read as the fine-tuned checkpoint that it makes of a base.

Tensors are computed when they are asked for. Knows nothing of how an adapter's folder is laid out, nor of deltas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from patchbay.adapters.update import VALUE, update
from patchbay.architecture import TensorSpec
from patchbay.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Adaptation:
    """What an adapter has for one tensor: `parts` -> their names in the adapter's file."""

    spec: TensorSpec
    parts: Mapping[str, str]
    scaling: float


@dataclass(frozen=True, kw_only=True)
class AdaptedCheckpoint(Checkpoint):
    """The fine-tuned model under the base's names. `num_bytes` is that of the adapter's file.

    Tensors of the base keep its dtype: round(fp32(base) + difference), once.
    """

    base: Checkpoint
    weights: Checkpoint  # the adapter's own tensors
    origins: Mapping[str, str]  # a tensor's name here -> its name in the base
    adaptations: Mapping[str, Adaptation] = field(default_factory=dict)

    def read(self, name: str) -> torch.Tensor:
        adaptation = self.adaptations.get(name)
        if adaptation is None:
            return self.base.read(self.origins[name])
        if name not in self.origins:
            return self._whole(adaptation)
        before = self.base.read(self.origins[name])
        if not before.is_floating_point():
            return self._whole(adaptation)
        common = (before.to(torch.float32) + self.difference(name)).to(before.dtype)
        if self.tensors[name].shape == tuple(before.shape):
            return common
        appended = self._after(adaptation, before)[len(before) :]
        return torch.cat([common, appended.to(before.dtype)])

    def difference(self, name: str) -> torch.Tensor:
        """fp32 [the base's shape]: what the adapter adds, computed in float64 and rounded once.

        Of a tensor that has more rows here than in the base: the rows of the base.
        """
        before = self.base.read(self.origins[name])
        adaptation = self.adaptations.get(name)
        if adaptation is None:
            return torch.zeros(before.shape)
        if VALUE not in adaptation.parts:
            return self._update(adaptation, before).to(torch.float32)
        after = self._after(adaptation, before)
        common = after if after.shape == before.shape else after[: len(before)]
        return (common - before.double()).to(torch.float32)

    @cached_property
    def num_bytes(self) -> int:
        return self.weights.num_bytes

    def _after(self, adaptation: Adaptation, before: torch.Tensor) -> torch.Tensor:
        start = self._whole(adaptation) if VALUE in adaptation.parts else before
        return start.double() + self._update(adaptation, start)

    def _whole(self, adaptation: Adaptation) -> torch.Tensor:
        return self.weights.read(adaptation.parts[VALUE])

    def _update(self, adaptation: Adaptation, start: torch.Tensor) -> torch.Tensor:
        parts = {part: self.weights.read(name) for part, name in adaptation.parts.items() if part != VALUE}
        return update(adaptation.spec.kind, parts, adaptation.scaling, start)
