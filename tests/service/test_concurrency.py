"""What is asked in parallel is answered as if it had been asked alone."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import pico
from tests.service.serving import Served, ok

THREADS = 16
Ask = tuple[str, dict[str, Any]]
IMAGES = torch.randn(4, 3, pico.IMAGE, pico.IMAGE, generator=torch.Generator().manual_seed(0))
MODELS = [
    "base",
    "math",
    "code",
    "0.5*math",
    "-code",
    "0.6*math + 0.4*code",
    "linear(math, code)",
    "both",
    "nope",
    "math +",
]
TEXTS = [" ".join(pico.WORDS[i : i + 1 + i % 5]) for i in range(10)]


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def answer(served: Served, ask: Ask) -> tuple[int, dict[str, Any]]:
    path, body = ask
    response = served.post(path, body)
    content: dict[str, Any] = response.json()
    for volatile in ("id", "created"):
        content.pop(volatile, None)
    content.get("patchbay", {}).pop("timings", None)
    return response.status_code, content


def assert_near(found: Any, expected: Any) -> None:
    """Equal, but for the last digits of numbers: what shares a forward pass decides how they are rounded."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_near(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other)
    else:
        assert found == expected


def check(served: Served, asks: list[Ask], meanwhile: Callable[[], None] = lambda: None) -> None:
    alone = [answer(served, ask) for ask in asks]
    assert {status for status, _ in alone} == {200, 404, 422}
    with ThreadPoolExecutor(THREADS + 1) as pool:
        other = pool.submit(meanwhile)
        together = list(pool.map(lambda ask: answer(served, ask), asks))
        other.result()
    assert_near(together, alone)
    assert ok(served.post("/v1/base/verify"))["ok"]


def test_a_hundred_classifications(vit: Served, delta_file: Callable[..., Path]) -> None:
    """While others upload, list, roll back and verify."""
    ok(vit.post("/v1/merges", {"name": "both", "recipe": "math - 0.5*code"}), 201)

    def disturb() -> None:
        for seed in (3, 4, 3, 4):
            assert vit.send("other", delta_file("vit", seed)).status_code in (200, 201)
            ok(vit.put("/v1/deltas/other/current", {"version": 1}))
            ok(vit.post("/v1/base/verify"))
            ok(vit.get("/v1/models"))

    for seed in (3, 4):
        delta_file("vit", seed)
    inputs = [[{"array": image.tolist()} for image in IMAGES[:n]] for n in (1, 2, 4)]
    asks = [
        ("/v1/classify", {"model": model, "input": batch})
        for model, batch in itertools.islice(itertools.cycle(itertools.product(MODELS, inputs)), 100)
    ]
    check(vit, asks, disturb)


def test_a_hundred_embeddings_of_text(encoder: Served) -> None:
    """Tokenizers keep their padding in themselves: requests of other lengths must not change it under each other."""
    ok(encoder.post("/v1/merges", {"name": "both", "recipe": "math - 0.5*code"}), 201)
    inputs = [TEXTS[n : n + 1 + n % 4] for n in range(10)]
    check(encoder, [("/v1/embeddings", {"model": m, "input": i}) for m, i in itertools.product(MODELS, inputs)])


def test_completions_draw_from_their_own_seeds(llama: Served) -> None:
    ok(llama.post("/v1/merges", {"name": "both", "recipe": "math - 0.5*code"}), 201)
    options = {"prompt": TEXTS[3], "max_tokens": 4, "temperature": 1.5}
    asks = [("/v1/completions", {"model": m, "seed": s, **options}) for m in MODELS for s in range(4)]
    check(llama, asks)


def test_parallel_uploads_of_one_name_are_numbered_without_gaps(vit: Served, delta_file: Callable[..., Path]) -> None:
    """Four files, each sent four times at once: four versions, each acknowledged once as new."""
    files = [delta_file("vit", seed) for seed in (1, 2, 3, 4)]
    with ThreadPoolExecutor(THREADS) as pool:
        responses = list(pool.map(lambda file: vit.send("many", file), files * 4))
    created = [response.json() for response in responses if response.status_code == 201]
    assert sorted(record["version"] for record in created) == [1, 2, 3, 4]
    assert [response.status_code for response in responses].count(200) == 12
    by_digest = {record["digest"]: record["version"] for record in created}
    for response in responses:
        assert response.json()["version"] == by_digest[response.json()["digest"]]
    versions = ok(vit.get("/v1/deltas/many"))["versions"]
    assert [(v["version"], v["current"]) for v in versions] == [(1, False), (2, False), (3, False), (4, True)]
