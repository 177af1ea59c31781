"""What is asked of serving systems: seeded requests, all at once or arriving over time. Knows no system."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.systems.base import Ask, Terms
from benchmarks.systems.models import Size
from benchmarks.systems.shapes import VOCABULARY

NONE, FEW, SOME, MANY, SIGNS = Size(0.0), Size(0.01), Size(0.05), Size(0.1), Size(0.05, signs=True)
POPULARITY = ("identical", "uniform", "zipf", "distinct")


@dataclass(frozen=True, slots=True)
class Work:
    """`asks` over `num_deltas` deltas of `size`. `systems`: those that can answer them at all."""

    name: str
    asks: tuple[Ask, ...]
    num_deltas: int
    size: Size
    systems: tuple[str, ...]

    @property
    def variants(self) -> list[Terms]:
        return list(dict.fromkeys(ask.terms for ask in self.asks))

    @property
    def is_open(self) -> bool:
        """Whether requests arrive over time."""
        return any(ask.at for ask in self.asks)


SUMS = ("base", "automatic", "decoupled", "patched", "replicas", "swap")  # a merge of adapters is a new adapter
EVERY = (*SUMS, "peft-merge", "peft-mixed")
OVER_TIME = ("base", "automatic", "decoupled", "patched", "swap", "peft-mixed")
FEW_OVER_TIME = ("base", "automatic", "swap", "peft-mixed")
BASE_ONLY = ("base", "wrapped", "generate", "manager")


def at_once(
    name: str, variants: Sequence[Terms], size: Size, systems: Sequence[str], *, prompt: int = 32, answer: int = 64
) -> Work:
    """A request for each of the variants, all at the start, all of one length."""
    generator = random.Random(0)
    asks = tuple(Ask(_prompt(generator, prompt), answer, terms) for terms in variants)
    return Work(name, asks, _count(variants), size, tuple(systems))


def over_time(
    name: str, count: int, rate: float, num_deltas: int, popularity: str, size: Size, systems: Sequence[str]
) -> Work:
    """`count` requests at `rate` a second on average, with exponential gaps; prompts of 8 to 64 tokens, answers of 8 to
    48. Popularity of the deltas: all ask for one, for any alike, by Zipf's law with exponent 1, or each for the next.
    """
    generator = random.Random(0)
    at, asks = 0.0, []
    for number in range(count):
        at += generator.expovariate(rate)
        delta = _delta(generator, popularity, number, num_deltas)
        prompt = _prompt(generator, generator.randint(8, 64))
        asks.append(Ask(prompt, generator.randint(8, 48), ((delta, 1.0),), at))
    return Work(name, tuple(asks), num_deltas, size, tuple(systems))


def plain(numbers: Sequence[int]) -> list[Terms]:
    return [((number, 1.0),) for number in numbers]


def sums(count: int, num_deltas: int) -> list[Terms]:
    """`count` different recipes of one to three terms over the same deltas."""
    generator = random.Random(1)
    found: list[Terms] = []
    while len(found) < count:
        size = 1 + len(found) % 3
        terms = tuple(
            (number, round(generator.uniform(0.2, 1.2), 2)) for number in generator.sample(range(num_deltas), size)
        )
        found.append(terms)
    return found


def mixed_lengths(name: str, count: int, systems: Sequence[str]) -> Work:
    """Base-only requests of very different lengths, all at the start."""
    generator = random.Random(2)
    asks = tuple(Ask(_prompt(generator, generator.randint(8, 64)), generator.randint(8, 96)) for _ in range(count))
    return Work(name, asks, 0, NONE, tuple(systems))


def works(quick: bool) -> Mapping[str, Work]:
    """By name. `quick`: fewer of them, with shorter answers."""
    eight, ours, tokens = plain(range(8)), ("base", "decoupled"), 16 if quick else 64
    found = [
        at_once("base", [()] * 8, NONE, BASE_ONLY, answer=tokens),
        at_once("8 deltas, density .05", eight, SOME, EVERY, answer=tokens),
        at_once("8 deltas, density .01", eight, FEW, ours, answer=tokens),
        at_once("8 deltas, signs at .05", eight, SIGNS, ours, answer=tokens),
        at_once("16 deltas, density .01", plain(range(16)), FEW, ours, answer=tokens),
        at_once("4 deltas, plain", plain([0, 1, 2, 3] * 2), SOME, ours, answer=tokens),
        at_once("4 deltas, 8 recipes", sums(8, 4), SOME, ours if quick else SUMS, answer=tokens),
        mixed_lengths("base, mixed lengths", 8 if quick else 32, ("base", "manager")),
    ]
    if not quick:
        found.append(at_once("8 deltas, density .1", eight, MANY, ours))
        found += [at_once(f"{k} deltas, density .05", plain(range(k)), SOME, ours) for k in (1, 4, 16, 32)]
    for popularity in ("zipf",) if quick else POPULARITY:
        count, rate = (8, 4.0) if quick else (48, 2.0)
        systems = FEW_OVER_TIME if quick else OVER_TIME
        found.append(over_time(f"open loop, {popularity}", count, rate, 8, popularity, SOME, systems))
    return {work.name: work for work in found}


def _prompt(generator: random.Random, length: int) -> tuple[int, ...]:
    return tuple(generator.randrange(5, VOCABULARY) for _ in range(length))


def _delta(generator: random.Random, popularity: str, number: int, count: int) -> int:
    if popularity == "identical":
        return 0
    if popularity == "distinct":
        return number % count
    weights = [1 / (rank + 1) if popularity == "zipf" else 1.0 for rank in range(count)]
    return generator.choices(range(count), weights)[0]


def _count(variants: Sequence[Terms]) -> int:
    return 1 + max((number for terms in variants for number, _ in terms), default=-1)
