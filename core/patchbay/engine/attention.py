"""Attention of a batch of single tokens over what their sequences have kept: transformers calls it in every layer.

The model sees N sequences of one token each; only here tokens of one sequence belong together. Knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache, PreTrainedModel

from patchbay.engine.cache import Place, Shelf

NAME = "patchbay"
# What a model may pass that changes nothing here. Anything else that is set would be left out of the answer silently.
_NEUTRAL = frozenset({"dropout", "is_causal", "sliding_window", "position_ids", "cache_position", "use_cache"})
_STEP: ContextVar[Step] = ContextVar("step")


@dataclass(slots=True)
class Span:
    """Tokens `first` to `first + rows x queries` of the batch: `queries` in a row for each of `rows` neighbours on a
    shelf. `starts`: how many tokens each of these had before. Either `rows` or `queries` is 1.
    """

    first: int
    shelf: Shelf
    row: int
    rows: int
    queries: int
    starts: tuple[int, ...]
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    @property
    def tokens(self) -> slice:
        return slice(self.first, self.first + self.rows * self.queries)

    @property
    def length(self) -> int:
        """Tokens that the longest of the rows has with these."""
        return max(self.starts) + self.queries

    def mask(self, window: int | None, device: torch.device) -> torch.Tensor | None:
        """bool [rows, 1, queries, length], True where a query sees a key; None where it sees all of them."""
        if window not in self.masks:
            self.masks[window] = self._find_mask(window, device)
        return self.masks[window]

    def _find_mask(self, window: int | None, device: torch.device) -> torch.Tensor | None:
        if self.queries == 1 and len(set(self.starts)) == 1 and (window is None or self.length <= window):
            return None
        starts = torch.tensor(self.starts, device=device)[:, None, None]
        query = starts + torch.arange(self.queries, device=device)[:, None]
        key = torch.arange(self.length, device=device)
        seen = key <= query
        if window is not None:
            seen &= key > query - window
        return seen[:, None]


class Step(Cache):
    """One forward pass: which token of the batch goes where. `places` and `starts` are the sequences' in the order of
    their tokens, `counts` how many tokens each has.
    """

    def __init__(self, places: Sequence[Place], starts: Sequence[int], counts: Sequence[int]) -> None:
        super().__init__(layers=[])
        device = places[0].shelf.keys[0].device
        self.spans = list(_spans(places, starts, counts))
        self._writes = [(shelf, *_index(found, device)) for shelf, found in _by_shelf(places, starts, counts).items()]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps the new keys and values [N, heads, 1, width], and hands them back as they are."""
        for shelf, tokens, positions in self._writes:
            for kept, new in ((shelf.keys[layer_idx], key_states), (shelf.values[layer_idx], value_states)):
                flat = kept.view(-1, *kept.shape[2:])
                flat.index_copy_(0, positions, new[:, :, 0] if tokens is None else new[tokens, :, 0])
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are given with the tokens, so nobody may count on this."""
        return 0

    @contextmanager
    def attended(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside, `model` attends here. Its configuration is what it was after it."""
        before, token = model.config._attn_implementation, _STEP.set(self)
        model.config._attn_implementation = NAME
        try:
            yield
        finally:
            model.config._attn_implementation = before
            _STEP.reset(token)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q K^T scaling) V for every token [N, heads, 1, width] over its sequence's; [N, 1, heads, width].

    Raises ValueError for what a model adds to that: a cap, sinks, biases.
    """
    odd = [name for name, given in more.items() if given is not None and name not in _NEUTRAL and given is not False]
    if odd or attention_mask is not None or query.shape[2] != 1:
        raise ValueError(f"this model's attention has more to it: {', '.join(odd) or 'a mask of its own'}")
    layer: int = module.layer_idx  # type: ignore[assignment]
    found = [_attend_span(span, layer, query, scaling, more.get("sliding_window")) for span in _STEP.get().spans]
    return torch.cat(found), None


AttentionInterface.register(NAME, attend)


def _attend_span(
    span: Span, layer: int, query: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    rows = slice(span.row, span.row + span.rows)
    keys, values = (kept[layer][rows, : span.length].transpose(1, 2) for kept in (span.shelf.keys, span.shelf.values))
    q = query[span.tokens]
    heads, groups = q.shape[1], q.shape[1] // keys.shape[1]
    mask = span.mask(window, q.device)
    if span.queries == 1:
        # The heads that share keys are the queries: nothing is repeated.
        grouped = q.view(span.rows, keys.shape[1], groups, -1)
        found = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
        return found.reshape(span.rows, 1, heads, -1)
    q = q[:, :, 0].transpose(0, 1)[None]
    found = scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scaling, enable_gqa=groups > 1)
    return found[0].transpose(0, 1)[:, None]


def _spans(places: Sequence[Place], starts: Sequence[int], counts: Sequence[int]) -> Iterator[Span]:
    first, pending = 0, None
    for place, start, count in zip(places, starts, counts, strict=True):
        joins = (
            pending is not None
            and count == pending.queries == 1
            and (place.shelf, place.row) == (pending.shelf, pending.row + pending.rows)
        )
        if pending is not None and joins:
            pending.rows, pending.starts = pending.rows + 1, (*pending.starts, start)
        else:
            if pending is not None:
                yield pending
            pending = Span(first, place.shelf, place.row, 1, count, (start,))
        first += count
    if pending is not None:
        yield pending


def _by_shelf(
    places: Sequence[Place], starts: Sequence[int], counts: Sequence[int]
) -> dict[Shelf, tuple[list[int], list[int]]]:
    """For each shelf its tokens of the batch, and their positions among all of the shelf's."""
    found: dict[Shelf, tuple[list[int], list[int]]] = {}
    first = 0
    for place, start, count in zip(places, starts, counts, strict=True):
        tokens, positions = found.setdefault(place.shelf, ([], []))
        tokens.extend(range(first, first + count))
        position = place.row * place.shelf.capacity + start
        positions.extend(range(position, position + count))
        first += count
    if len(found) == 1:  # all tokens, in order
        [(shelf, (_, positions))] = found.items()
        return {shelf: ([], positions)}
    return found


def _index(found: tuple[list[int], list[int]], device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor]:
    tokens, positions = found
    return torch.tensor(tokens, device=device) if tokens else None, torch.tensor(positions, device=device)
