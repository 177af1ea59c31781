"""What was read under one delta never reaches an answer under another.

Every delta makes the model say one token that no other says, and it says so through keys and values: the delta moves
what attention takes from each token of the prompt. Whoever got another one's keys and values would say the other's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import torch
from tests import pico
from tests.engine.mixed import LONG, Mixed

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.cache import Place
from patchbay.engine.engine import Engine
from patchbay.engine.prefix import BLOCK, PrefixCache
from patchbay.engine.recipes import Path as How
from patchbay.engine.request import SamplingParams
from patchbay.engine.texts import Answer

Folder = Callable[..., Path]
COUNT = 20  # deltas
REQUESTS = 1000 if LONG else 100
WIDTH = pico.HIDDEN // pico.HEADS  # of a head, whose keys and values two heads share
# An entry of the values for each delta, and the last one for the base; the first one is the constant's.
ENTRIES = (*range(1, COUNT + 1), 2 * WIDTH - 1)
FIRST_TOKEN = 30  # what is said: this one, or one of those after it
LOUD = 8.0
SHORT = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
# Three whole blocks that many prompts share.
BEGINNINGS = [
    tuple(torch.randint(4, 30, (3 * BLOCK,), generator=torch.Generator().manual_seed(seed)).tolist()) for seed in (0, 1)
]


def name(number: int) -> str:
    return f"d{number}"


def token(number: int) -> int:
    return FIRST_TOKEN + number


def where(entry: int) -> int:
    """Of a value's entry: where the first of the heads that share it hands it on."""
    return entry // WIDTH * 2 * WIDTH + entry % WIDTH


def say(tensors: dict[str, torch.Tensor], number: int, loudness: float) -> None:
    tensors["model.layers.0.self_attn.v_proj.weight"][ENTRIES[number], 0] = loudness


def honest(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A base that says what its first layer's values hold, and nearly nothing else."""
    for each, tensor in tensors.items():
        tensor.mul_(0.05) if tensor.dim() > 1 else tensor.fill_(1)
        if each == "model.embed_tokens.weight":
            tensor[:, 0] = 5.0  # every token has the same in it, for the values to take
    tensors["model.layers.0.self_attn.o_proj.weight"].copy_(torch.eye(pico.HIDDEN))
    for number, entry in enumerate(ENTRIES):
        tensors["lm_head.weight"][token(number), where(entry)] = LOUD
    say(tensors, COUNT, LOUD / 2)
    return tensors


def tuned(number: int) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        say(tensors, number, LOUD)
        return tensors

    return change


@pytest.fixture(scope="module")
def deltas(model_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Delta]]:
    folder = tmp_path_factory.mktemp("said")
    base = pico.rewrite(model_folder("llama", tied=False), folder / "base", honest)
    made = {}
    for number in range(COUNT):
        finetuned = pico.rewrite(base, folder / f"tuned-{number}", tuned(number))
        made[name(number)] = pico.delta(base, finetuned, folder / name(number))
    return base, made


@pytest.fixture
def model(deltas: tuple[Path, dict[str, Delta]]) -> Iterator[Mixed]:
    with opened(*deltas) as found:
        yield found


@contextmanager
def opened(base: Path, deltas: dict[str, Delta]) -> Iterator[Mixed]:
    engine = Engine(Backbone.load(base), deltas.__getitem__)
    try:
        yield Mixed(engine, deltas, engine.backbone)
    finally:
        engine.close()


class Forgetful(PrefixCache):
    """Does not care whose text it was."""

    def restore(self, key: str, tokens: Sequence[int], place: Place) -> int:
        return super().restore("anybody", tokens, place)

    def keep(self, key: str, tokens: Sequence[int], place: Place) -> None:
        super().keep("anybody", tokens, place)


def leaks(model: Mixed, requests: int, paths: Sequence[How | None] = (None,)) -> int:
    """How many of the answers, asked for from eight threads at once, have a token of somebody else's."""
    generator = random.Random(requests)
    language, wrong = model.engine.language, []

    def answer(number: int, prompt: tuple[int, ...], path: How | None) -> None:
        ready = model.ready(None if number == COUNT else name(number), None if number == COUNT else path)
        found: list[Answer] = language.complete(ready, [prompt], SHORT)
        if set(found[0].tokens) != {token(number)}:
            wrong.append(number)

    jobs = []
    for _ in range(requests):
        ending = tuple(generator.choices(range(4, 30), k=generator.randint(1, 5)))
        jobs.append((generator.randint(0, COUNT), generator.choice(BEGINNINGS) + ending, generator.choice(paths)))

    def work(start: int) -> None:
        for job in jobs[start::8]:
            answer(*job)

    threads = [Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(wrong)


def test_everybody_says_what_is_theirs(model: Mixed) -> None:
    passes = model.watched()
    assert leaks(model, REQUESTS) == 0
    assert passes.decoupled and not passes.patched
    counts = model.engine.language.generator.counts
    assert counts.prefix_tokens > counts.prompt_tokens, "most of what was asked was known"
    assert model.engine.verify().ok


def test_patched_and_decoupled_share_what_is_known(model: Mixed) -> None:
    """A recipe's text is the same on both ways, and nobody else's."""
    passes = model.watched()
    assert leaks(model, REQUESTS // 4, (How.PATCHED, How.DECOUPLED)) == 0
    assert passes.decoupled and passes.patched and model.engine.language.generator.counts.prefix_tokens
    assert model.engine.verify().ok


def test_a_cache_that_forgets_whose_text_it_was_is_found_out(model: Mixed) -> None:
    """Else the tests above would hold for a cache that leaks."""
    language = model.engine.language
    language.generator._prefixes = Forgetful(language.runner.cache.geometry, 1 << 20)
    assert leaks(model, 50) > 10


def test_another_delta_is_found_out(deltas: tuple[Path, dict[str, Delta]]) -> None:
    """Else the first test would hold for whatever the model says."""
    base, made = deltas
    names = list(made)
    swapped = {each: made[other] for each, other in zip(names, names[1:] + names[:1], strict=True)}
    with opened(base, swapped) as model:
        assert leaks(model, 20) > 10
