"""Language models with a few deltas, requests under many recipes at once, and what a merged copy answers to each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, settings
from tests import pico
from tests.long import LONG

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.cache import KVCache
from patchbay.engine.engine import Budgets, Engine
from patchbay.engine.generator import Generator
from patchbay.engine.observer import Observer
from patchbay.engine.prefix import BLOCK, PrefixCache
from patchbay.engine.recipes import Path as How
from patchbay.engine.recipes import Ready
from patchbay.engine.request import SamplingParams
from patchbay.engine.runner import Runner, geometry_of
from patchbay.engine.scheduler import Limits
from patchbay.engine.sequence import Sequence as Running
from patchbay.engine.texts import Answer, Collector
from patchbay.errors import Cancelled, PatchbayError
from patchbay.execute.patch import Patcher
from patchbay.merge import CanonicalRecipe, parse, settled

INTERLEAVED = settings(
    max_examples=1000 if LONG else 20,
    deadline=None,
    phases=set(Phase) - {Phase.explain},
    suppress_health_check=list(HealthCheck),
)
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
class Asked:
    """One request under way, of one prompt."""

    text: str | None
    prompt: tuple[int, ...]
    collector: Collector
    sequences: list[Running]

    @property
    def answer(self) -> Answer:
        """The first one, as far as it is known."""
        return self.collector.answers[0]

    @property
    def error(self) -> PatchbayError | None:
        return self.answer.error


class Passes(Observer):
    """Counts forward passes, by path."""

    def __init__(self) -> None:
        self.patched = self.decoupled = 0

    def stepped(self, is_patched: bool, readies: Collection[Ready]) -> None:
        assert readies
        self.patched += is_patched
        self.decoupled += not is_patched


@dataclass
class Mixed:
    """One resident model and `NAMES` deltas of it; `reference` is a second copy, which is patched. `own`: what answers
    instead of the engine's own generator.
    """

    engine: Engine
    deltas: dict[str, Delta]
    reference: Backbone
    own: Generator | None = None

    def recipe(self, text: str | None) -> CanonicalRecipe | None:
        if text is None:
            return None
        parsed = parse(text)
        return settled(parsed, {term.delta: term.delta for term in parsed.terms})

    def ready(self, text: str | None, path: How | None = None) -> Ready:
        return self.engine.prepare(self.recipe(text), path)

    @property
    def generator(self) -> Generator:
        return self.own or self.engine.language.generator

    def watched(self) -> Passes:
        """From now on."""
        passes = Passes()
        self.engine.observe(passes)
        return passes

    def another(self, limits: Limits | None = None, budgets: Budgets | None = None) -> Mixed:
        """The same model and deltas in an engine of its own, whose thread nobody has woken."""
        engine = Engine(self.engine.backbone, self.deltas.__getitem__, budgets=budgets, limits=limits)
        return Mixed(engine, self.deltas, self.reference)

    def within(self, limits: Limits, kv_tokens: int, prefix_blocks: int) -> Mixed:
        """The same engine with a generator of its own, which is made at once: for whoever needs hundreds."""
        geometry = geometry_of(self.engine.backbone)
        runner = Runner(self.engine.backbone, KVCache(geometry, kv_tokens * geometry.token_bytes))
        prefixes = PrefixCache(geometry, prefix_blocks * BLOCK * geometry.token_bytes)
        return replace(self, own=Generator(runner, prefixes, limits, self._weights))

    @contextmanager
    def _weights(self, ready: Ready | None) -> Iterator[None]:
        if ready is None or ready.merged is None:
            yield
            return
        terms = ready.merged.deltas(list(ready.deltas.values()))
        with Patcher(self.engine.backbone).patched(ready.merged.plan, terms):
            yield

    def add(
        self,
        text: str | None,
        prompt: tuple[int, ...],
        params: SamplingParams = GREEDY,
        *,
        path: How | None = None,
        n: int = 1,
        deadline: float | None = None,
    ) -> Asked:
        """A request for somebody who steps: the engine's thread is not woken."""
        collector = Collector(n)
        texts = self.engine.language.texts
        requests = texts.requests(self.ready(text, path), [prompt], params, collector, n=n, deadline=deadline)
        asked = Asked(text, prompt, collector, list(map(Running, requests)))
        self.generator.add(asked.sequences)
        return asked

    def add_all(self, texts: Sequence[str | None], seed: int, params: SamplingParams = GREEDY) -> list[Asked]:
        return [self.add(text, prompt, params) for text, prompt in zip(texts, prompts(len(texts), seed), strict=True)]

    def drain(self) -> None:
        """Steps until nothing is left to do."""
        for _ in range(10_000):
            if not self.generator.step():
                return
        raise AssertionError("there is always something to do")

    def check_answer(self, asked: Asked, count: int | None = None) -> None:
        """It is over and has `count` tokens, or as many as it asked for; all of them are the merged copy's."""
        assert asked.answer.error is None and asked.answer.finish_reason == "length"
        wanted = asked.sequences[0].request.params.max_tokens if count is None else count
        assert len(asked.answer.tokens) == wanted
        self.check(asked.text, asked.prompt, asked.answer.tokens)

    def check_all(self, asked: Sequence[Asked]) -> None:
        for each in asked:
            self.check_answer(each)

    def end(self) -> None:
        """Nobody is under way any more, nobody's memory is reserved, and the weights are what they were."""
        scheduler, runner = self.generator.scheduler, self.engine.language.runner
        used = runner.cache.used_tokens if isinstance(runner, Runner) else runner.used_tokens
        left = (len(scheduler.running), len(scheduler.waiting), used)
        self.generator.reset(Cancelled("the test is over"))
        assert left == (0, 0, 0)
        assert self.engine.verify().ok

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


@contextmanager
def mixed_causal(model_type: str, folder: Path, **changes: object) -> Iterator[Mixed]:
    """The same of any architecture."""
    base = pico.causal(folder / "base", model_type=model_type, **changes)

    def tuned(_: str, seed: int, scale: float) -> Path:
        return pico.perturb(base, folder / f"tuned-{seed}", seed, scale)

    with mixed(model_type, lambda _: base, tuned, folder) as found:
        yield found


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
