"""Whole models: one of each fine-tune in memory, or one place in memory that checkpoints are read into."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from benchmarks.systems.base import Terms, Turns, num_bytes
from benchmarks.systems.shapes import merged
from patchbay.backbone import Backbone
from patchbay.delta import Delta


class BaseOnly(Turns):
    """transformers' `generate` on the base, whatever is asked for: what serving one model costs. The model may be
    wrapped, which changes no answer and should cost nothing.
    """

    def __init__(self, name: str, model: PreTrainedModel) -> None:
        self.name = name
        self.model = model

    @contextmanager
    def active(self, terms: Terms) -> Iterator[PreTrainedModel]:
        yield self.model

    def together(self, first: object, other: object) -> bool:
        return True

    @property
    def resident_bytes(self) -> int:
        return num_bytes(self.model)


class Replicas(Turns):
    """A dense model for every variant, made beforehand."""

    name = "replicas"

    def __init__(self, backbone: Backbone, deltas: Mapping[str, Delta], variants: Sequence[Terms]) -> None:
        self.models: dict[Terms, PreTrainedModel] = {}
        for terms in dict.fromkeys(variants):
            with merged(backbone, deltas, terms):
                self.models[terms] = copy.deepcopy(backbone.model)

    @contextmanager
    def active(self, terms: Terms) -> Iterator[PreTrainedModel]:
        yield self.models[terms]

    @property
    def resident_bytes(self) -> int:
        return sum(map(num_bytes, self.models.values()))


class Swap(Turns):
    """One model, whose weights are overwritten from the checkpoint that is asked for. Checkpoints are in the page
    cache: they have just been written.
    """

    name = "checkpoint swap"

    def __init__(
        self, backbone: Backbone, deltas: Mapping[str, Delta], variants: Sequence[Terms], folder: Path
    ) -> None:
        self.files: dict[Terms, Path] = {}
        for number, terms in enumerate(dict.fromkeys(variants)):
            with merged(backbone, deltas, terms):
                self.files[terms] = folder / f"checkpoint-{number}.safetensors"
                save_file(dict(_weights(backbone.model)), self.files[terms])
        self.model: PreTrainedModel = copy.deepcopy(backbone.model)
        self._places = dict(_weights(self.model))
        self._loaded: Terms | None = None

    @contextmanager
    def active(self, terms: Terms) -> Iterator[PreTrainedModel]:
        if terms != self._loaded:
            with torch.no_grad():
                for name, tensor in load_file(self.files[terms]).items():
                    self._places[name].copy_(tensor)
            self._loaded = terms
        yield self.model

    @property
    def resident_bytes(self) -> int:
        return num_bytes(self.model)


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter once, as its own memory."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()
