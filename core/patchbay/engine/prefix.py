"""Keys and values of texts that came before, for texts that begin alike. Knows nothing of models.

What is kept belongs to one recipe, whose hash holds the digests of its deltas: a text read under one fine-tune says
nothing about how another one reads it. It also belongs to whoever asked (the key's salt): an answer that begins sooner
says that its text was asked before, which is nobody else's business.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice, takewhile

import torch

from patchbay.engine.cache import Geometry, Place

BLOCK = 32  # tokens that are kept, found and dropped together

Pair = tuple[torch.Tensor, torch.Tensor]


class PrefixCache:
    """Blocks under `max_bytes`, least recently used out first, and of a text its last ones first: without its beginning
    they are of no use. A block's name is a hash of all tokens up to its end.
    """

    def __init__(self, geometry: Geometry, max_bytes: int) -> None:
        self.max_blocks = max_bytes // (BLOCK * geometry.token_bytes)
        self._is_void = False
        self._block_bytes = BLOCK * geometry.token_bytes
        self._blocks: OrderedDict[bytes, list[Pair]] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        return len(self._blocks) * self._block_bytes

    def forget(self) -> None:
        """Nothing that is there now is found again. From any thread: the blocks go when they are next looked at."""
        self._is_void = True

    def restore(self, key: str, tokens: Sequence[int], place: Place) -> int:
        """Writes what is known of the text's beginning to its place; how many tokens that is."""
        self._clear_if_void()
        found = list(takewhile(self._blocks.__contains__, _names(key, tokens)))
        for name in reversed(found):
            self._blocks.move_to_end(name)
        for number, name in enumerate(found):
            for (keys, values), (kept_keys, kept_values) in zip(
                _slices(place, number), self._blocks[name], strict=True
            ):
                keys.copy_(kept_keys)
                values.copy_(kept_values)
        return BLOCK * len(found)

    def keep(self, key: str, tokens: Sequence[int], place: Place) -> None:
        """Of a text whose tokens all have keys and values, all whole blocks that are not there yet and fit."""
        self._clear_if_void()
        names = list(islice(_names(key, tokens), self.max_blocks))
        for number, name in reversed(list(enumerate(names))):
            if name not in self._blocks:
                if len(self._blocks) == self.max_blocks:
                    self._blocks.popitem(last=False)
                self._blocks[name] = [(keys.clone(), values.clone()) for keys, values in _slices(place, number)]
            self._blocks.move_to_end(name)

    def _clear_if_void(self) -> None:
        if self._is_void:
            self._is_void = False
            self._blocks.clear()


def _names(key: str, tokens: Sequence[int]) -> Iterator[bytes]:
    name = key.encode()
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        text = torch.tensor(tokens[start : start + BLOCK]).numpy().tobytes()
        name = blake2b(name + text, digest_size=20).digest()
        yield name


def _slices(place: Place, number: int) -> Iterator[Pair]:
    """A block's part of every layer."""
    part = slice(number * BLOCK, (number + 1) * BLOCK)
    for keys, values in zip(place.shelf.keys, place.shelf.values, strict=True):
        yield keys[place.row, part], values[place.row, part]
