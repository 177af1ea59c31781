from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.delta import Delta, read_delta
from patchbay.engine.engine import Budgets, Engine
from patchbay.engine.request import SamplingParams
from patchbay.engine.texts import Answer
from patchbay.errors import Cancelled, InputError, InvalidRecipe, ShuttingDown, UnsupportedTask
from patchbay.merge import CanonicalRecipe, find_method, parse
from patchbay.models.inputs import ArrayInput

PIXELS = torch.randn(3, pico.IMAGE, pico.IMAGE, generator=torch.Generator().manual_seed(0)).tolist()
IMAGE = [ArrayInput(PIXELS)]
DIGESTS = {"math": "sha256:1", "code": "sha256:2"}
NAMES = {digest: name for name, digest in DIGESTS.items()}


@pytest.fixture(scope="module")
def base(model_folder: Callable[..., Path]) -> Backbone:
    return Backbone.load(model_folder("vit"))


@pytest.fixture(scope="module")
def deltas(
    base: Backbone, finetune_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Delta]:
    folder = tmp_path_factory.mktemp("deltas")
    made = {}
    for seed, (name, digest) in enumerate(DIGESTS.items(), 1):
        file = pico.delta_file(base.folder, finetune_folder("vit", seed, 0.05), folder / name, density=0.3)
        made[digest] = read_delta(file, base.specs, base.fingerprint)
    return made


@pytest.fixture
def loaded() -> list[str]:
    return []


@pytest.fixture
def engine(base: Backbone, deltas: Mapping[str, Delta], loaded: list[str]) -> Engine:
    def load(digest: str) -> Delta:
        loaded.append(digest)
        return deltas[digest]

    return Engine(base, load)


def recipe(text: str) -> CanonicalRecipe:
    parsed = parse(text)
    method = find_method(parsed.method)
    return parsed.canonical(DIGESTS, method.symmetric, method.defaults)


def probabilities(engine: Engine, text: str | None) -> list[float]:
    [result] = engine.classify(engine.prepare(recipe(text) if text else None), IMAGE, NAMES, None)
    return list(result.probabilities.values())


def test_deltas_are_loaded_once_and_plans_made_once(engine: Engine, loaded: list[str]) -> None:
    for text in ("math", "0.5*math", "code", "math + code", "code + math", "math"):
        probabilities(engine, text)
    assert loaded == ["sha256:1", "sha256:2"]
    plans = engine.recipes.plans
    assert (len(plans), plans.hits) == (4, 2), "the order of a symmetric method's terms does not matter"


def test_without_a_recipe_nothing_is_loaded(engine: Engine, loaded: list[str]) -> None:
    probabilities(engine, None)
    assert loaded == []


def test_a_budget_of_nothing_still_serves(base: Backbone, deltas: Mapping[str, Delta], engine: Engine) -> None:
    frugal = Engine(base, lambda digest: deltas[digest], budgets=Budgets(deltas=0, plans=0))
    assert probabilities(frugal, "math - code") == probabilities(engine, "math - code")
    assert len(frugal.recipes.deltas) == len(frugal.recipes.plans) == 0


def test_the_weights_of_a_term_are_its_own(engine: Engine) -> None:
    """Recipes are sorted by digest, whatever order they are written in."""
    assert probabilities(engine, "0.1*math + 0.9*code") == probabilities(engine, "0.9*code + 0.1*math")
    assert probabilities(engine, "0.1*math + 0.9*code") != probabilities(engine, "0.9*math + 0.1*code")


def test_what_a_request_does_is_gone_after_it(engine: Engine) -> None:
    before = probabilities(engine, None)
    for text in ("math", "-3*code", "linear(math, code)"):
        assert probabilities(engine, text) != before
    assert probabilities(engine, None) == before
    assert engine.verify().ok


def test_a_failing_request_leaves_the_base_as_it_was(engine: Engine, base: Backbone) -> None:
    with pytest.raises(InputError):
        engine.classify(engine.prepare(recipe("math")), [ArrayInput([1])], NAMES, None)

    def fail(*_: object) -> None:
        raise RuntimeError("inside the forward pass")

    handle = base.model.register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="inside"):
            engine.classify(engine.prepare(recipe("math")), IMAGE, NAMES, None)
    finally:
        handle.remove()
    assert engine.verify().ok
    assert probabilities(engine, "math") != probabilities(engine, None)


def test_parallel_requests_do_not_see_each_other(engine: Engine) -> None:
    texts = [None, "math", "code", "0.5*math", "math - code", "linear(math, code)"] * 6
    alone = [probabilities(engine, text) for text in texts[:6]] * 6
    with ThreadPoolExecutor(8) as threads:
        verdicts = [threads.submit(engine.verify) for _ in range(4)]
        for found, own in zip(threads.map(lambda text: probabilities(engine, text), texts), alone, strict=True):
            assert found == pytest.approx(own, abs=1e-6)
        assert all(verdict.result().ok for verdict in verdicts)


def test_verify_compares_with_the_load(engine: Engine, base: Backbone) -> None:
    verdict = engine.verify()
    assert (verdict.ok, verdict.fingerprint, verdict.resident_digest) == (True, base.fingerprint, base.resident_digest)
    bias = base.tensor("classifier.bias")
    kept = bias.clone()
    bias[0] += 1
    try:
        changed = engine.verify()
        assert not changed.ok and changed.resident_digest != base.resident_digest
    finally:
        bias.copy_(kept)
    assert engine.verify().ok


def test_check_runs_nothing_and_finds_what_serving_would(engine: Engine, loaded: list[str]) -> None:
    engine.check(recipe("math + code"))
    assert loaded == ["sha256:1", "sha256:2"] and len(engine.recipes.plans) == 1
    with pytest.raises(InvalidRecipe, match="sum to 0"):
        engine.check(recipe("linear(math, -code)"))


def test_tasks(engine: Engine) -> None:
    with pytest.raises(UnsupportedTask, match="cannot embed") as error:
        engine.embed(engine.prepare(None), ["the cat"])
    assert error.value.param == "model"
    with pytest.raises(UnsupportedTask, match="cannot complete text"):
        engine.language  # noqa: B018


def test_what_a_failed_load_raises_is_not_kept(base: Backbone, deltas: Mapping[str, Delta]) -> None:
    answers = iter([False, True])

    def load(digest: str) -> Delta:
        if not next(answers):
            raise LookupError(digest)
        return deltas[digest]

    engine = Engine(base, load)
    with pytest.raises(LookupError):
        probabilities(engine, "math")
    assert probabilities(engine, "math") != probabilities(engine, None)


def test_a_stopped_engine_answers_no_completion(
    model_folder: Callable[..., Path],
) -> None:
    engine = Engine(Backbone.load(model_folder("llama")), refuse_to_load)
    engine.stop()
    with pytest.raises(ShuttingDown):
        complete(engine)


def test_nobody_waits_so_nothing_goes_on(model_folder: Callable[..., Path]) -> None:
    engine = Engine(Backbone.load(model_folder("llama")), refuse_to_load)
    gone = Event()
    gone.set()
    with pytest.raises(Cancelled):
        complete(engine, gone)


def complete(engine: Engine, cancelled: Event | None = None) -> list[Answer]:
    params = SamplingParams(max_tokens=200, temperature=0)
    return engine.language.complete(engine.prepare(None), ["the cat"], params, cancelled=cancelled)


def refuse_to_load(digest: str) -> Delta:
    raise AssertionError("the base alone needs no delta")
