"""Keys and values of the sequences under way, under a byte budget that is stated and not what happens to be free.

A sequence reserves room for all tokens that it may ever have, in a row of the smallest shelf that is long enough: a
shelf's rows lie side by side, so that one product attends for all of them. Knows nothing of models and requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SHORTEST = 64  # tokens of the shortest rows; each next shelf's are twice as long


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a model keeps of a token: for each layer the shapes [heads, width] of its key and its value."""

    layers: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        entries = sum(heads * width for layer in self.layers for heads, width in layer)
        return entries * self.dtype.itemsize


@dataclass(slots=True, eq=False)
class Place:
    """Where a sequence's keys and values lie. `row` changes when another sequence leaves the shelf."""

    shelf: Shelf
    row: int


class Shelf:
    """Rows of `capacity` tokens each, the first `len(places)` of them in use; a layer's are [rows, capacity, heads,
    width]. Whatever a row held, it is finite: attention multiplies what it must not see by 0.
    """

    def __init__(self, geometry: Geometry, capacity: int) -> None:
        self.capacity = capacity
        self.places: list[Place] = []
        self.num_rows = 0
        self.keys = [self._empty(geometry, key, 0) for key, _ in geometry.layers]
        self.values = [self._empty(geometry, value, 0) for _, value in geometry.layers]

    def _empty(self, geometry: Geometry, shape: tuple[int, int], rows: int) -> torch.Tensor:
        return torch.zeros(rows, self.capacity, *shape, dtype=geometry.dtype, device=geometry.device)

    def resize(self, num_rows: int) -> None:
        """Keeps what rows in use hold. One layer at a time, so that only one is there twice."""
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old.new_zeros(num_rows, *old.shape[1:])
                tensors[layer][: len(self.places)] = old[: len(self.places)]
        self.num_rows = num_rows

    def remove(self, place: Place, *, is_finite: bool) -> None:
        """The last row takes the place of the one that goes: rows in use stay side by side."""
        last = self.places.pop()
        for tensor in (*self.keys, *self.values):
            if last is not place:
                tensor[place.row] = tensor[last.row]
            if last is not place or not is_finite:  # one that moves is not over: who knows what it holds
                tensor[last.row] = 0
        if last is not place:
            self.places[place.row] = last
            last.row = place.row


class KVCache:
    """`max_bytes` for all shelves together."""

    def __init__(self, geometry: Geometry, max_bytes: int) -> None:
        self.geometry = geometry
        self.max_tokens = max_bytes // geometry.token_bytes
        self.shelves: dict[int, Shelf] = {}

    @property
    def num_bytes(self) -> int:
        """Of all rows, in use or not."""
        return self.num_tokens * self.geometry.token_bytes

    @property
    def num_tokens(self) -> int:
        # A copy, here and below: others ask too while the engine's thread opens and closes shelves.
        return sum(shelf.num_rows * shelf.capacity for shelf in list(self.shelves.values()))

    @property
    def used_tokens(self) -> int:
        """Reserved by sequences."""
        return sum(len(shelf.places) * shelf.capacity for shelf in list(self.shelves.values()))

    def capacity_for(self, num_tokens: int) -> int:
        """Of the shelf that a sequence of `num_tokens` goes to."""
        capacity = SHORTEST
        while capacity < num_tokens:
            capacity *= 2
        # The budget need not be a power of two: what is longer than its largest one gets all of it.
        return min(capacity, self.max_tokens)

    def reserve(self, num_tokens: int) -> Place | None:
        """A row for a sequence that will have at most `num_tokens`; None where there is no room now.

        Raises ValueError where there never will be.
        """
        if num_tokens > self.max_tokens:
            raise ValueError(f"{num_tokens} tokens, and all memory is for {self.max_tokens}")
        capacity = self.capacity_for(num_tokens)
        if self.used_tokens + capacity > self.max_tokens:
            return None
        shelf = self.shelves.get(capacity)
        if shelf is None:
            shelf = self.shelves[capacity] = Shelf(self.geometry, capacity)
        if len(shelf.places) == shelf.num_rows:
            self._grow(shelf)
        place = Place(shelf, len(shelf.places))
        shelf.places.append(place)
        return place

    def free(self, place: Place, *, is_finite: bool) -> None:
        """`is_finite`: that all keys and values in it are known to be."""
        shelf = place.shelf
        shelf.remove(place, is_finite=is_finite)
        if not shelf.places:
            del self.shelves[shelf.capacity]
        elif len(shelf.places) * 4 <= shelf.num_rows:
            shelf.resize(shelf.num_rows // 2)

    def _grow(self, shelf: Shelf) -> None:
        """To twice as many rows, or to as many as there is room for: one at least, once nobody has spare ones."""
        if self.num_tokens + shelf.capacity > self.max_tokens:
            for other in self.shelves.values():
                if len(other.places) < other.num_rows:
                    other.resize(len(other.places))
        room = (self.max_tokens - self.num_tokens) // shelf.capacity
        shelf.resize(shelf.num_rows + min(room, max(1, shelf.num_rows)))
