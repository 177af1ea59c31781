"""Single tokens of many sequences, attended step by step, and each sequence attended whole by plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from patchbay.engine.attention import Step, attend
from patchbay.engine.cache import Geometry, KVCache, Place

CPU = torch.device("cpu")
LAYERS, WIDTH = 2, 8
WINDOWS = (None, 3)  # of each layer
TWO_SHELVES = (20, 90)


class Layer(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index


@dataclass(eq=False)
class Text:
    """A sequence's queries, keys and values of every layer, [layers, heads, tokens, width], all drawn beforehand."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    place: Place
    done: int = 0
    found: list[torch.Tensor] = field(default_factory=list)  # [layers, tokens, heads, width]

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    def expected(self, layer: int, window: int | None, scaling: float) -> torch.Tensor:
        """[tokens, heads, width], every token seeing itself and the `window` - 1 before it."""
        groups = self.queries.shape[1] // self.keys.shape[1]
        keys, values = (kept[layer].repeat_interleave(groups, 0) for kept in (self.keys, self.values))
        distance = torch.arange(self.length)[:, None] - torch.arange(self.length)
        seen = (distance >= 0) & (distance < (window or self.length))
        found = scaled_dot_product_attention(self.queries[layer], keys, values, attn_mask=seen, scale=scaling)
        return found.transpose(0, 1)


@dataclass
class World:
    """`groups` query heads share each of `heads` keys; values are narrower than keys."""

    heads: int
    groups: int
    scaling: float = 0.3
    cache: KVCache = field(init=False)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        layer = ((self.heads, WIDTH), (self.heads, WIDTH // 2))
        geometry = Geometry((layer,) * LAYERS, torch.float32, CPU)
        self.cache = KVCache(geometry, 4096 * geometry.token_bytes)

    def text(self, length: int, reserved: int) -> Text:
        place = self.cache.reserve(max(length, reserved))
        assert place is not None
        queries, keys = self.random(self.heads * self.groups, length, WIDTH), self.random(self.heads, length, WIDTH)
        return Text(queries, keys, self.random(self.heads, length, WIDTH // 2), place)

    def random(self, heads: int, length: int, width: int) -> torch.Tensor:
        return torch.randn(LAYERS, heads, length, width, generator=self.generator)

    def step(self, texts: Sequence[Text], counts: Sequence[int]) -> Step:
        """One forward pass over the next `counts` tokens of each text."""
        step = Step([text.place for text in texts], [text.done for text in texts], counts)
        parts = [slice(text.done, text.done + count) for text, count in zip(texts, counts, strict=True)]
        outputs = [self.attend(step, layer, texts, parts) for layer in range(LAYERS)]
        for number, (text, count) in enumerate(zip(texts, counts, strict=True)):
            start = sum(counts[:number])
            text.found.append(torch.stack([output[start : start + count, 0] for output in outputs]))
            text.done += count
        return step

    def attend(self, step: Step, layer: int, texts: Sequence[Text], parts: Sequence[slice]) -> torch.Tensor:
        def tokens(name: str) -> torch.Tensor:
            """[N, heads, 1, width]"""
            rows = [getattr(text, name)[layer][:, part] for text, part in zip(texts, parts, strict=True)]
            return torch.cat(rows, dim=1).transpose(0, 1)[:, :, None]

        with step.attended(model()):
            keys, values = step.update(tokens("keys"), tokens("values"), layer)
            more = {"sliding_window": WINDOWS[layer], "dropout": 0.0, "is_causal": True}
            found, _ = attend(Layer(layer), tokens("queries"), keys, values, None, self.scaling, **more)
        return found

    def check(self, text: Text) -> None:
        found = torch.cat(text.found, dim=1)
        for layer, window in enumerate(WINDOWS):
            expected = text.expected(layer, window, self.scaling)[: text.done]
            torch.testing.assert_close(found[layer], expected, rtol=1e-4, atol=1e-5)


def model() -> Any:
    return SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))


@given(st.sampled_from([(1, 1), (2, 1), (2, 3), (1, 4)]), st.data())
@settings(deadline=None, max_examples=40)
def test_every_token_sees_what_came_before_it_in_its_own_text(heads: tuple[int, int], data: st.DataObject) -> None:
    """Texts of two shelves, read in pieces of any length in any order, which leave and come between steps."""
    world = World(*heads)
    live: list[Text] = []
    for _ in range(data.draw(st.integers(1, 8))):
        for length in data.draw(st.lists(st.integers(1, 16), max_size=3)):
            live.append(world.text(length, data.draw(st.sampled_from(TWO_SHELVES))))
        chosen = [live[number] for number in data.draw(st.permutations(range(len(live))))]
        counts = [min(data.draw(st.sampled_from([1, 1, 2, 5, 16])), text.length - text.done) for text in chosen]
        if chosen:
            world.step(chosen, counts)
        for text in [text for text in live if text.done == text.length or data.draw(st.integers(0, 5)) == 0]:
            live.remove(text)
            if text.done:
                world.check(text)
            world.cache.free(text.place, is_finite=True)
    for text in live:
        if text.done:
            world.check(text)


def test_neighbours_that_have_one_token_each_are_one_product() -> None:
    world = World(2, 2)
    texts = [world.text(10, 20) for _ in range(4)]
    step = world.step(texts, [3, 1, 1, 1])
    assert [(span.rows, span.queries, span.starts) for span in step.spans] == [(1, 3, (0,)), (3, 1, (0, 0, 0))]
    step = world.step([texts[0], texts[1], texts[3], texts[2]], [1, 1, 1, 1])
    assert [(span.row, span.rows) for span in step.spans] == [(0, 2), (3, 1), (2, 1)], "rows of a shelf, in order"
    other = world.text(10, 90)
    step = world.step([*texts, other], [1] * 5)
    assert [(span.row, span.rows, span.tokens) for span in step.spans] == [(0, 4, slice(0, 4)), (0, 1, slice(4, 5))]
    for text in texts:
        world.check(text)


@pytest.mark.parametrize(
    ("starts", "queries", "window", "needed"),
    [
        ((4,), 1, None, False),
        ((4, 4), 1, None, False),
        ((4, 3), 1, None, True),
        ((0,), 2, None, True),
        ((4,), 1, 5, False),
        ((4,), 1, 4, True),
    ],
)
def test_a_mask_is_made_only_where_something_is_unseen(
    starts: tuple[int, ...], queries: int, window: int | None, needed: bool
) -> None:
    world = World(1, 1)
    places = [world.text(9, 20).place for _ in starts]
    [span] = Step(places, starts, [queries] * len(starts)).spans
    mask = span.mask(window, CPU)
    assert (mask is not None) == needed
    if mask is not None:
        assert mask.shape == (len(starts), 1, queries, max(starts) + queries)
        assert span.mask(window, CPU) is mask, "once for all layers"
        for row, start in enumerate(starts):
            for query in range(queries):
                seen = [key for key in range(span.length) if bool(mask[row, 0, query, key])]
                end = start + query + 1
                assert seen == list(range(max(0, end - (window or end)), end))


def test_what_others_left_behind_is_not_seen() -> None:
    """A row holds whatever an earlier text wrote, however large."""
    world = World(2, 2)
    for text in [world.text(16, 20) for _ in range(2)]:
        for kept in (*text.place.shelf.keys, *text.place.shelf.values):
            kept[text.place.row] = 1e30
        world.cache.free(text.place, is_finite=True)
        texts = [world.text(4, 20), world.text(9, 20)]
        world.step(texts, [1, 8])
        world.step(texts, [1, 1])
        for each in texts:
            world.check(each)


@pytest.mark.parametrize("more", [{"softcap": 50.0}, {"s_aux": torch.zeros(2)}, {"position_bias": torch.zeros(1)}])
def test_what_a_model_adds_is_not_left_out_silently(more: dict[str, object]) -> None:
    world = World(1, 1)
    text = world.text(3, 20)
    step = Step([text.place], [0], [1])
    tokens = torch.zeros(1, 1, 1, WIDTH)
    with step.attended(model()), pytest.raises(ValueError, match=next(iter(more))):
        attend(Layer(0), tokens, tokens, tokens, None, 1.0, **more)
    with step.attended(model()), pytest.raises(ValueError, match="a mask of its own"):
        attend(Layer(0), tokens, tokens, tokens, torch.ones(1), 1.0)
    step.update(tokens, tokens[..., : WIDTH // 2], 0)
    with step.attended(model()):
        attend(Layer(0), tokens, tokens, tokens, None, 1.0, softcap=None, is_causal=None, use_cache=True)


def test_a_model_attends_here_only_inside() -> None:
    text = World(1, 1).text(3, 20)
    used = model()
    with pytest.raises(RuntimeError, match="inside"), Step([text.place], [0], [1]).attended(used):
        assert used.config._attn_implementation == "patchbay"
        raise RuntimeError("inside")
    assert used.config._attn_implementation == "sdpa"
    with pytest.raises(LookupError):
        tokens = torch.zeros(1, 1, 1, WIDTH)
        attend(Layer(0), tokens, tokens, tokens, None, 1.0)
