"""Language models with a few deltas, requests under many recipes at once, and what a merged copy answers to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.engine import Engine
from patchbay.engine.recipes import Path as How
from patchbay.engine.recipes import Ready
from patchbay.engine.request import SamplingParams
from patchbay.engine.texts import Collector
from patchbay.execute.patch import Patcher
from patchbay.merge import CanonicalRecipe, parse, settled

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
NAMES = ("math", "code", "law", "art")
RECIPES = (
    None,
    "math",
    "0.5*code",
    "math + code",
    "0.6*math + 0.4*law",
    "math - 0.5*art",
    "neuromerging(math, code, law)",
    "linear(math, art)",
    "ties(math, code; density=0.4)",
    "1.3*law + 0.2*code - 0.3*art",
)


@dataclass
class Mixed:
    """One resident model and `NAMES` deltas of it; `reference` is a second copy, which is patched."""

    engine: Engine
    deltas: Mapping[str, Delta]
    reference: Backbone
    _answers: dict[tuple[str | None, tuple[int, ...], int], list[torch.Tensor]] = field(default_factory=dict)

    def recipe(self, text: str | None) -> CanonicalRecipe | None:
        if text is None:
            return None
        parsed = parse(text)
        return settled(parsed, {term.delta: term.delta for term in parsed.terms})

    def ready(self, text: str | None, path: How | None = None) -> Ready:
        return self.engine.prepare(self.recipe(text), path)

    def logits(self, text: str | None, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """Of a merged copy, before each of the answer's tokens."""
        ids = torch.tensor([[*prompt, *answer]])
        recipe = self.recipe(text)
        with torch.inference_mode():
            if recipe is None:
                found = self.reference.model(input_ids=ids).logits
            else:
                ready = self.engine.prepare(recipe)
                assert ready.merged is not None
                terms = ready.merged.deltas(list(ready.deltas.values()))
                with Patcher(self.reference).patched(ready.merged.plan, terms):
                    found = self.reference.model(input_ids=ids).logits
        rows: torch.Tensor = found[0, len(prompt) - 1 : -1]
        return rows.float()

    def check(self, text: str | None, prompt: Sequence[int], answer: Sequence[int], margin: float = 1e-4) -> None:
        """Every token is the merged copy's likeliest, or so near to it that rounding decides."""
        rows = self.logits(text, prompt, answer)
        chosen = rows[range(len(answer)), list(answer)]
        worst = float((rows.max(-1).values - chosen).max())
        assert worst <= margin, f"{text}: a token that is {worst:.2g} below the likeliest"


@contextmanager
def mixed(
    kind: str, model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], folder: Path, **options: object
) -> Iterator[Mixed]:
    base = model_folder(kind, **options)
    deltas = {
        name: pico.delta(base, finetune_folder(kind, seed, 0.1, **options), folder / name, density=0.3)
        for seed, name in enumerate(NAMES, 1)
    }
    engine = Engine(Backbone.load(base), deltas.__getitem__)
    try:
        yield Mixed(engine, deltas, Backbone.load(base))
    finally:
        engine.close()


def ask(
    mixed: Mixed, asked: Sequence[tuple[Ready, tuple[int, ...]]], params: SamplingParams = GREEDY
) -> list[list[int]]:
    """The tokens of every answer, all asked for at once."""
    language, collectors = mixed.engine.language, []
    for ready, prompt in asked:
        collectors.append(Collector(1))
        language.submit(language.texts.requests(ready, [prompt], params, collectors[-1]))
    return [collector.result()[0].tokens for collector in collectors]


def prompts(count: int, seed: int, longest: int = 40) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [tuple(torch.randint(4, pico.VOCAB, (length,), generator=generator).tolist()) for length in lengths]
