from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay.engine import prefix
from patchbay.engine.cache import Geometry, KVCache, Place
from patchbay.engine.prefix import BLOCK, PrefixCache

GEOMETRY = Geometry((((2, 3), (2, 1)), ((1, 2), (1, 2))), torch.float32, torch.device("cpu"))
BLOCK_BYTES = BLOCK * GEOMETRY.token_bytes
KEYS = ("base", "a recipe")


def place(tokens: int = 8 * BLOCK) -> Place:
    """The second row of a shelf."""
    cache = KVCache(GEOMETRY, 10**6)
    places = [cache.reserve(tokens) for _ in range(3)]
    assert places[1] is not None
    return places[1]


def rows(place: Place) -> list[torch.Tensor]:
    """[tokens, heads, width] of the place, for keys and values of every layer."""
    return [tensor[place.row] for tensor in (*place.shelf.keys, *place.shelf.values)]


def read(key: str, tokens: Sequence[int]) -> Place:
    """A place as a model leaves it: what it keeps of a token follows from the recipe and all tokens up to it."""
    found = place()
    numbers = [hash((KEYS.index(key), *tokens[:end])) % 100_003 for end in range(1, len(tokens) + 1)]
    for row in rows(found):
        shape = row.shape[1:]
        row[: len(tokens)] = 10.0 * torch.tensor(numbers)[:, None, None] + torch.arange(shape.numel()).view(shape)
    return found


def restored(cache: PrefixCache, key: str, tokens: Sequence[int]) -> int:
    """How many tokens were restored, each as a model would have left it, and nothing else touched."""
    found = place()
    for row in rows(found):
        row.fill_(7)
    count = cache.restore(key, tokens, found)
    for row, expected in zip(rows(found), rows(read(key, tokens)), strict=True):
        assert torch.equal(row[:count], expected[:count])
        assert bool((row[count:] == 7).all())
    neighbours = [tensor[other] for tensor in (*found.shelf.keys, *found.shelf.values) for other in (0, 2)]
    assert not any(neighbour.any() for neighbour in neighbours)
    return count


def text(*numbers: int, end: int = 0) -> list[int]:
    """A block for each number, and `end` tokens more."""
    return [number for number in numbers for _ in range(BLOCK)] + [99] * end


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 4 * BLOCK - 1])
def test_whole_blocks_come_back(length: int) -> None:
    tokens = list(range(length))
    cache = PrefixCache(GEOMETRY, 10**6)
    assert restored(cache, "base", tokens) == 0
    cache.keep("base", tokens, read("base", tokens))
    assert restored(cache, "base", tokens) == length // BLOCK * BLOCK
    assert cache.num_bytes == length // BLOCK * BLOCK_BYTES


def test_only_what_is_alike_from_the_start_comes_back() -> None:
    cache = PrefixCache(GEOMETRY, 10**6)
    tokens = text(1, 2, 3)
    cache.keep("base", tokens, read("base", tokens))
    assert restored(cache, "base", text(1, 2, 4)) == 2 * BLOCK
    assert restored(cache, "base", text(1, 4, 3)) == BLOCK
    assert restored(cache, "base", text(4, 2, 3)) == 0
    assert restored(cache, "base", text(2, 3)) == 0
    assert restored(cache, "base", [*text(1), *text(2)[:-1], 5]) == BLOCK
    assert restored(cache, "base", tokens[:-1]) == 2 * BLOCK
    assert restored(cache, "base", text(1, 2, 3, 4, end=5)) == 3 * BLOCK


def test_another_recipe_s_are_another_s() -> None:
    """What a fine-tune keeps of a text is wrong under every other."""
    cache = PrefixCache(GEOMETRY, 10**6)
    tokens = text(1, 2)
    cache.keep("base", tokens, read("base", tokens))
    assert restored(cache, "a recipe", tokens) == 0
    cache.keep("a recipe", tokens, read("a recipe", tokens))
    assert restored(cache, "a recipe", tokens) == restored(cache, "base", tokens) == 2 * BLOCK
    assert cache.num_bytes == 4 * BLOCK_BYTES


def test_that_check_sees_names_without_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    names = prefix._names
    monkeypatch.setattr(prefix, "_names", lambda key, tokens: names("", tokens))
    with pytest.raises(AssertionError):
        test_another_recipe_s_are_another_s()


def test_it_is_a_copy() -> None:
    cache = PrefixCache(GEOMETRY, 10**6)
    tokens = text(1)
    found = read("base", tokens)
    cache.keep("base", tokens, found)
    for row in rows(found):
        row.fill_(5)
    assert restored(cache, "base", tokens) == BLOCK


def test_the_least_recently_used_leave_first() -> None:
    cache = PrefixCache(GEOMETRY, 3 * BLOCK_BYTES)
    for number in (1, 2, 3):
        cache.keep("base", text(number), read("base", text(number)))
    assert restored(cache, "base", text(1)) == BLOCK, "used"
    cache.keep("base", text(2), read("base", text(2)))  # kept already: used
    cache.keep("base", text(4), read("base", text(4)))
    assert [restored(cache, "base", text(number)) for number in (3, 1, 2, 4)] == [0, BLOCK, BLOCK, BLOCK]


def test_a_text_is_forgotten_from_its_end() -> None:
    """Its later blocks are of no use without its first."""
    long = text(1, 2, 3)
    for others, is_used in product((1, 2, 3), (False, True)):
        cache = PrefixCache(GEOMETRY, 4 * BLOCK_BYTES)
        cache.keep("base", long, read("base", long))
        assert not is_used or restored(cache, "base", long)
        for tokens in map(text, range(4, 4 + others)):
            cache.keep("base", tokens, read("base", tokens))
        assert restored(cache, "base", long) == (4 - others) * BLOCK
    cache = PrefixCache(GEOMETRY, 2 * BLOCK_BYTES)
    cache.keep("base", long, read("base", long))
    assert restored(cache, "base", long) == 2 * BLOCK, "as much of its beginning as there is room for"


def test_no_budget_keeps_nothing() -> None:
    cache = PrefixCache(GEOMETRY, BLOCK_BYTES - 1)
    cache.keep("base", text(1), read("base", text(1)))
    assert (restored(cache, "base", text(1)), cache.num_bytes) == (0, 0)


@given(
    st.integers(0, 5),
    st.lists(
        st.tuples(st.sampled_from(KEYS), st.lists(st.integers(1, 2), max_size=4), st.booleans()),
        min_size=1,
        max_size=10,
    ),
)
@settings(deadline=None, max_examples=20)
def test_random_histories(budget: int, asked: list[tuple[str, list[int], bool]]) -> None:
    """Never more than was kept, never wrong, never over the budget; the text just kept is there."""
    cache = PrefixCache(GEOMETRY, budget * BLOCK_BYTES)
    kept: set[tuple[str, tuple[int, ...]]] = set()
    for key, numbers, keeps in asked:
        tokens = text(*numbers, end=len(numbers))
        count = restored(cache, key, tokens) // BLOCK
        assert all((key, tuple(numbers[: end + 1])) in kept for end in range(count))
        if keeps:
            cache.keep(key, tokens, read(key, tokens))
            kept |= {(key, tuple(numbers[: end + 1])) for end in range(len(numbers))}
            assert restored(cache, key, tokens) == min(budget, len(numbers)) * BLOCK
        assert cache.num_bytes <= budget * BLOCK_BYTES
