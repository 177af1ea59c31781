"""Five tenants with deltas of the same names, sixty-four requests under way: each hears its own, and nothing else.

Every delta makes the base say one token that no other says, through keys and values: see `test_isolation`. Whatever is
kept of a text that two tenants ask is kept twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from tests import pico
from tests.engine.test_isolation import BEGINNINGS, COUNT, honest, token, tuned
from tests.long import LONG
from tests.service.serving import Served, ok, serving
from tests.service.tenants import OPERATOR, Tenant, tenant

from patchbay.backbone import Backbone
from patchbay.engine.prefix import BLOCK

TENANTS = ("default", "acme", "bolt", "coda", "dune")
REQUESTS = 10_000 if LONG else 400
IN_FLIGHT = 64
# What can be asked -> what it is. What is kept of a text belongs to one of these, one beginning and one tenant.
MODELS = {"base": "base", "math": "math", "math@1": "math", "1.5*math": "1.5", "mine": "2", "shared": "shared"}
SHARED = len(TENANTS)  # the number of a delta that all tenants have
READS = ("/v1/models", "/v1/deltas", "/v1/deltas/math", "/v1/merges/mine", "/v1/jobs", "/v1/deltas/math/file")


@pytest.fixture(scope="module")
def canaries(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    folder = tmp_path_factory.mktemp("canaries")
    base = pico.rewrite(model_folder("llama", tied=False), folder / "base", honest)
    files = []
    for number in range(SHARED + 1):
        finetuned = pico.rewrite(base, folder / f"tuned-{number}", tuned(number))
        files.append(pico.delta_file(base, finetuned, folder / f"{number}.delta").read_bytes())
    return base, files


@pytest.fixture
def served(canaries: tuple[Path, list[bytes]], tmp_path: Path) -> Iterator[Served]:
    with serving(Backbone.load(canaries[0]), tmp_path, api_key=OPERATOR) as served:
        yield served


def move_in(served: Served, number: int, files: list[bytes]) -> Tenant:
    """Its deltas, merge, blob and job; names and ids that hold `canary` are its own alone."""
    one = tenant(served, TENANTS[number])
    for name, file in (("math", files[number]), ("shared", files[SHARED]), (f"canary-{one.name}", files[number])):
        one.upload(name, file)
    ok(one.post("/v1/merges", {"name": "mine", "recipe": "2*math"}), 201)
    words = f"the words of {one.name}".encode()
    digest = f"sha256:{sha256(words).hexdigest()}"
    ok(one.ask("PUT", f"/v1/blobs/{digest}", content=words), 201)
    sweep = {"model": f"canary-{one.name}", "scales": [1.0], "calibration": digest}
    ok(one.post("/v1/transfers", sweep, headers={"idempotency-key": "the same"}), 202)
    return one


def says(number: int, model: str) -> int:
    """The one token that is said under the model."""
    return token({"base": COUNT, "shared": SHARED}.get(model, number))


def hears(one: Tenant, model: str, prompt: list[int], expected: int) -> tuple[bool, str]:
    """Whether the first token of the answer is the expected one, and all of the answer."""
    asked = {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    answer = ok(one.post("/v1/completions", {**asked, "stop_token_ids": [expected]}))
    is_first = answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] == 1
    return is_first, str(answer)


def cross_reads(served: Served, tenants: list[Tenant], files: list[bytes]) -> tuple[int, set[tuple[str, str, int]]]:
    """How many answers have something of another tenant, and what texts were asked: tenant, what under, beginning."""
    generator, asked = random.Random(REQUESTS), set()
    secrets = [(f"canary-{one.name}", sha256(files[n]).hexdigest()) for n, one in enumerate(tenants)]

    def is_wrong(job: tuple[int, str, int, list[int], str]) -> bool:
        number, model, beginning, ending, path = job
        others = [text for n, pair in enumerate(secrets) if n != number for text in pair]
        if path:
            response = tenants[number].get(path)
            if path.endswith("/file"):
                return response.content != files[number]
            return response.status_code != 200 or any(text in response.text for text in others)
        expected = says(number, model)
        is_own, answer = hears(tenants[number], model, [*BEGINNINGS[beginning], *ending], expected)
        return not is_own or any(text in answer for text in others)

    jobs = []
    for _ in range(REQUESTS):
        ending = generator.choices(range(4, 30), k=generator.randint(1, 5))
        path = generator.choice(READS) if generator.random() < 0.3 else ""
        number, model, beginning = (
            generator.randrange(len(TENANTS)),
            generator.choice([*MODELS]),
            generator.randrange(2),
        )
        jobs.append((number, model, beginning, ending, path))
        if not path:
            asked.add((TENANTS[number], MODELS[model], beginning))
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        return sum(threads.map(is_wrong, jobs)), asked


def test_nobody_hears_another(served: Served, canaries: tuple[Path, list[bytes]]) -> None:
    tenants = [move_in(served, number, canaries[1]) for number in range(len(TENANTS))]
    assert len({says(number, model) for number in range(SHARED) for model in MODELS}) == SHARED + 2
    assert not hears(tenants[0], "math", BEGINNINGS[0], says(1, "math"))[0], "what another says is found out"
    wrong, asked = cross_reads(served, tenants, canaries[1])
    assert wrong == 0
    assert len(asked) > len(TENANTS) * 8
    prefixes = served.engine.language.generator._prefixes
    assert prefixes is not None and len(BEGINNINGS[0]) % BLOCK == 0
    assert len(prefixes._blocks) == len(asked) * len(BEGINNINGS[0]) // BLOCK, "texts of two tenants are never one"
    assert served.engine.verify().ok
