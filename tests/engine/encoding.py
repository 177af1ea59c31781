"""Encoders with a few deltas, requests under many recipes at once, and what a merged copy answers to each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.engine import Engine
from patchbay.engine.patience import FOREVER, Patience
from patchbay.engine.recipes import Path as How
from patchbay.engine.recipes import Ready
from patchbay.execute.patch import Patcher
from patchbay.merge import CanonicalRecipe, parse, settled
from patchbay.models.inputs import ArrayInput, Input, Inputs
from patchbay.models.replay import encoder_of

NAMES = ("math", "code", "law")
RECIPES = (None, "math", "0.5*code", "0.6*math + 0.4*law", "neuromerging(math, code, law)", "ties(math, code)", "-law")


@dataclass
class Encoding:
    """One resident encoder and deltas of it; `reference` is a second copy, which is patched."""

    engine: Engine
    deltas: dict[str, Delta]
    reference: Backbone

    def ready(self, text: str | None, path: How | None = None) -> Ready:
        return self.engine.prepare(recipe(text), path)

    def answer(
        self, text: str | None, inputs: Sequence[Input], path: How | None = None, patience: Patience = FOREVER
    ) -> torch.Tensor:
        """Probabilities, or unit vectors of a plain encoder."""
        ready = self.ready(text, path)
        if self.engine.backbone.labels is None:
            return self.engine.embed(ready, inputs, patience).vectors
        names = {name: name for name in self.deltas}
        found = self.engine.classify(ready, inputs, names, None, patience)
        return torch.tensor([list(each.probabilities.values()) for each in found])

    def expected(self, text: str | None, inputs: Sequence[Input]) -> torch.Tensor:
        """The same, of a merged copy."""
        batch = Inputs(self.reference).batch(inputs)
        wanted = recipe(text)
        if wanted is None:
            return self._read(batch)
        merged = self.engine.prepare(wanted).merged
        assert merged is not None
        terms = merged.deltas([self.deltas[digest] for digest, _ in wanted.terms])
        with Patcher(self.reference).patched(merged.plan, terms):
            return self._read(batch)

    @torch.inference_mode()
    def _read(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        output: Any = self.reference.model(**batch)
        if "logits" in output:
            return torch.softmax(output.logits, -1)
        if "attention_mask" in batch:
            mask = batch["attention_mask"][:, :, None]
            return torch.nn.functional.normalize((output.last_hidden_state * mask).sum(1), dim=-1)
        return torch.nn.functional.normalize(output.pooler_output, dim=-1)


def recipe(text: str | None) -> CanonicalRecipe | None:
    if text is None:
        return None
    parsed = parse(text)
    return settled(parsed, {term.delta: term.delta for term in parsed.terms})


def encoding(
    kind: str, model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], folder: Path
) -> Encoding:
    base = model_folder(kind)
    deltas = {
        name: pico.delta(base, finetune_folder(kind, seed, 0.05), folder / name, density=0.3)
        for seed, name in enumerate(NAMES, 1)
    }
    return Encoding(Engine(Backbone.load(base), deltas.__getitem__), deltas, Backbone.load(base))


def inputs_for(kind: str, count: int, seed: int, longest: int = 20) -> list[Input]:
    generator = torch.Generator().manual_seed(seed)
    if not kind.startswith("bert"):
        pixels = torch.randn(count, 3, pico.IMAGE, pico.IMAGE, generator=generator)
        return [ArrayInput(each.tolist()) for each in pixels]
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    draws = [torch.randint(len(pico.WORDS), (length,), generator=generator).tolist() for length in lengths]
    return [" ".join(pico.WORDS[number] for number in draw) for draw in draws]


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """The weights are somebody else's, so that requests gather."""
    with engine._lock:
        yield


def gather(engine: Engine, asked: Sequence[Callable[[], object]]) -> list[object]:
    """What each of `asked` gives, or raises: all wait before the first one runs."""
    found: list[object] = [None] * len(asked)

    def ask(number: int) -> None:
        try:
            found[number] = asked[number]()
        except Exception as error:
            found[number] = error

    threads = [Thread(target=ask, args=(number,)) for number in range(len(asked))]
    with held(engine):
        for thread in threads:
            thread.start()
        while len(engine.encoders._waiting) < sum(thread.is_alive() for thread in threads):
            time.sleep(0.002)
    for thread in threads:
        thread.join()
    return found


@contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """The rows of every forward pass of its encoder."""
    rows: list[int] = []
    encoder = encoder_of(backbone.model) or backbone.model
    handle = encoder.register_forward_hook(lambda _, __, output: rows.append(len(output.last_hidden_state)))
    try:
        yield rows
    finally:
        handle.remove()
