"""One tensor at a time, in every term: what a method that is no plan works on. Knows nothing of files and of names of
deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from patchbay.architecture import TensorSpec
from patchbay.delta import Delta
from patchbay.merge.recipe import Scalar
from patchbay.merge.settings import Settings

Params = Mapping[str, Scalar]  # a method's, all of them


class Base(Protocol):
    """The model that all terms were fine-tuned from."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...

    def stored(self, name: str) -> torch.Tensor:
        """The tensor as the checkpoint has it, whatever is patched into the resident model meanwhile."""
        ...


@dataclass(frozen=True, slots=True)
class Stack:
    """One tensor: its fp32 difference in every term, [T, *shape], and the terms' weights, fp32 [T].

    A term that does not change the tensor has zeros. `read_base` gives the base's, fp32 [shape]. `sigma`:
    `largest_loss` of the terms. `settings`: parameters that terms have of their own, fp32 [T] each.
    """

    name: str
    differences: torch.Tensor
    weights: torch.Tensor
    spec: TensorSpec
    read_base: Callable[[], torch.Tensor]
    sigma: float = 0.0
    settings: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def each(self, name: str, params: Params) -> torch.Tensor:
        """A numeric parameter of every term, fp32 [T]: the term's own, or the method's."""
        shared = torch.full((len(self.weights),), float(params[name]))
        return self.settings.get(name, shared)

    @property
    def is_matrix(self) -> bool:
        return self.spec.neuron_axis is not None


@dataclass(frozen=True, slots=True)
class Stacks:
    """All tensors that any term changes, in sorted order of names; each is read when it is asked for, every time anew.

    `is_sampled`: whether the kept entries of any term were drawn at random and carry no magnitudes.
    """

    names: tuple[str, ...]
    read: Callable[[str], Stack]
    is_sampled: bool = False

    def __iter__(self) -> Iterator[Stack]:
        return map(self.read, self.names)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, deltas: Sequence[Delta], settings: Settings, base: Base) -> Stacks:
        """Those of decoded deltas, with what terms set in each tensor. Integer tensors and appended rows are none of
        a method's business.
        """

        def read(name: str) -> Stack:
            differences = torch.stack([difference_of(delta, name, base.specs[name].shape) for delta in deltas])
            weights, own = settings.weights_in(name), settings.params_in(name)
            return Stack(name, differences, weights, base.specs[name], lambda: base.stored(name).float(), sigma, own)

        names = sorted({name for delta in deltas for name in (*delta.matrices, *delta.factors, *delta.vectors)})
        sigma = largest_loss(deltas)
        return cls(tuple(names), read, any(map(is_sampled, deltas)))


def difference_of(delta: Delta, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """fp32, zeros where the delta does not change the tensor."""
    return delta.difference(name).reshape(shape) if name in delta else torch.zeros(shape)


def largest_loss(deltas: Sequence[Delta]) -> float:
    """The largest share of its L1 mass that pruning took from any term. None of what was pruned at random counts: there
    kept entries stand for the others, and are as large as measuring the outputs, or a rule, found best.
    """
    return max((delta.manifest.statistics.sigma for delta in deltas if not is_sampled(delta)), default=0.0)


def is_sampled(delta: Delta) -> bool:
    """Whether entries were kept at random: their sizes say how often they stand for others, not how large they were."""
    compression = delta.manifest.compression
    return compression.method == "random" or (compression.method == "nps" and compression.seed is not None)
