"""PEFT's two ways: an adapter merged into the weights while its requests run, and many adapters in one batch.

Adapters of rank 16 on every linear layer, with random weights. Only single deltas of weight 1: its mixed batches know
no weights, and a merge of adapters is a new adapter there.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from benchmarks.systems.base import Ask, Clock, Served, Terms, Turns, generate, num_bytes
from benchmarks.systems.shapes import SPREAD

RANK = 16
NO_ADAPTER = "__base__"  # PEFT's own word in a mixed batch


class Adapters(Turns):
    """What both ways share: `count` adapters, "0" to "count - 1"."""

    def __init__(self, model: PreTrainedModel, count: int) -> None:
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT asks for attributes that transformers has deprecated
            self.model: Any = get_peft_model(copy.deepcopy(model), config, adapter_name="0")
            for number in range(1, count):
                self.model.add_adapter(str(number), config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, SPREAD, generator=generator)
        self.model.eval()

    @contextmanager
    def active(self, terms: Terms) -> Iterator[PreTrainedModel]:
        with self.model.disable_adapter():
            yield self.model

    @property
    def resident_bytes(self) -> int:
        return num_bytes(self.model)


class Merged(Adapters):
    name = f"PEFT merge, rank {RANK}"

    @contextmanager
    def active(self, terms: Terms) -> Iterator[PreTrainedModel]:
        if not terms:
            with super().active(terms) as model:
                yield model
            return
        adapter = _adapter(terms)
        self.model.base_model.merge_adapter([adapter])
        try:
            yield self.model
        finally:
            self.model.base_model.unmerge_adapter()


class Mixed(Adapters):
    name = f"PEFT mixed batch, rank {RANK}"

    @contextmanager
    def active(self, terms: Terms) -> Iterator[PreTrainedModel]:
        yield self.model

    def together(self, first: Ask, other: Ask) -> bool:
        return True

    def generate(self, model: PreTrainedModel, group: Sequence[Ask], clock: Clock) -> list[Served]:
        names = [_adapter(ask.terms) if ask.terms else NO_ADAPTER for ask in group]
        return generate(model, group, clock, adapter_names=names)


def _adapter(terms: Terms) -> str:
    [(number, weight)] = terms
    assert weight == 1, "adapters have no weights here"
    return str(number)
