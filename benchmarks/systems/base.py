"""One way to serve many fine-tunes, as the benchmark sees all of them: requests with arrival times in, token times out.

Knows nothing of what is measured.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

Terms = tuple[tuple[int, float], ...]  # number of a fine-tune and its weight; () is the base


@dataclass(frozen=True, slots=True)
class Ask:
    """`at`: seconds after the start at which the request comes."""

    prompt: tuple[int, ...]
    max_tokens: int
    terms: Terms = ()
    at: float = 0.0


@dataclass(slots=True)
class Served:
    """When each token was there, in seconds after the start."""

    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class System(ABC):
    """`close` gives back what it holds. `resident_bytes`: weights, deltas and adapters that it keeps in memory."""

    name: str

    @abstractmethod
    def serve(self, asks: Sequence[Ask]) -> list[Served]:
        """Answers in the order of `asks`, greedily and without an end token."""

    @property
    @abstractmethod
    def resident_bytes(self) -> int: ...

    def close(self) -> None:
        return


class Turns(System):
    """Serves requests of one variant together by transformers' `generate`, and variants one after another: whoever came
    first, with all who wait for the same.
    """

    max_batch = 8

    @abstractmethod
    def active(self, terms: Terms) -> AbstractContextManager[PreTrainedModel]:
        """The model with the fine-tune in effect."""

    def together(self, first: Ask, other: Ask) -> bool:
        """Whether one call can answer both."""
        return first.terms == other.terms

    def generate(self, model: PreTrainedModel, group: Sequence[Ask], clock: Clock) -> list[Served]:
        return generate(model, group, clock)

    def serve(self, asks: Sequence[Ask]) -> list[Served]:
        start = time.perf_counter()
        found: dict[int, Served] = {}
        waiting = sorted(range(len(asks)), key=lambda number: asks[number].at)
        while waiting:
            due = [number for number in waiting if asks[number].at <= time.perf_counter() - start]
            if not due:
                time.sleep(max(0.0, asks[waiting[0]].at - (time.perf_counter() - start)))
                continue
            group = [number for number in due if self.together(asks[due[0]], asks[number])][: self.max_batch]
            with self.active(asks[due[0]].terms) as model:
                served = self.generate(model, [asks[number] for number in group], Clock(start))
            found.update(zip(group, served, strict=True))
            waiting = [number for number in waiting if number not in found]
        return [found[number] for number in range(len(asks))]


class Clock(StoppingCriteria):
    """Never stops; notes when each token was there."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.times: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        self.times.append(time.perf_counter() - self.start)
        return torch.zeros(len(input_ids), dtype=torch.bool)  # type: ignore[return-value]


@torch.inference_mode()
def generate(model: PreTrainedModel, group: Sequence[Ask], clock: Clock, **more: Any) -> list[Served]:
    """One static batch, padded on the left and as long as its longest answer."""
    longest = max(len(ask.prompt) for ask in group)
    ids = torch.tensor([[0] * (longest - len(ask.prompt)) + list(ask.prompt) for ask in group])
    mask = torch.tensor([[0] * (longest - len(ask.prompt)) + [1] * len(ask.prompt) for ask in group])
    count = max(ask.max_tokens for ask in group)
    output = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=mask,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
        **more,
    )
    return [
        Served(clock.times[: ask.max_tokens], row[longest : longest + ask.max_tokens].tolist())
        for ask, row in zip(group, output, strict=True)
    ]


def num_bytes(model: torch.nn.Module) -> int:
    """Tied tensors count once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(model)}.values())


def _tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
