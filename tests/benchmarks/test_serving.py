"""All systems serve the same requests, gates stop a wrong one, and tables are of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.report_serving import markdown, ratios
from benchmarks.serving_gates import GateFailed, check_tokens, exact
from benchmarks.systems.base import Ask, Served
from benchmarks.systems.ours import Ours
from benchmarks.systems.shapes import draw_delta, make_base, recipe
from benchmarks.workload import EVERY, POPULARITY, Work, at_once, over_time, plain, sums, works
from tests.engine.mixed import prompts

from benchmarks import serving, serving_gates
from patchbay.backbone import Backbone

SHORT = Work("short", (), 3, 0.05, (*EVERY, "generate"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("2M", tmp_path_factory.mktemp("bases"), torch.float32)


def short(systems: Sequence[str]) -> Work:
    """Six requests on three deltas, of unlike lengths, the last a moment later."""
    asked = prompts(6, 1, 12)
    asks = [Ask(prompt, 2 + number % 3, ((number % 3, 1.0),)) for number, prompt in enumerate(asked)]
    return replace(SHORT, asks=(*asks[:-1], replace(asks[-1], at=0.05)), systems=tuple(systems))


def test_every_system_answers(folder: Path) -> None:
    """Those with the same deltas give the same tokens: else `measure` raises."""
    work = short(SHORT.systems)
    lines = serving.measure(work, folder, 2)
    assert [line["system"] for line in lines] == list(work.systems)
    for line in lines:
        assert len(line["wall"]) == len(line["cpu"]) == len(line["times"]) == 2
        for served in line["times"]:
            for ask, times in zip(work.asks, served, strict=True):
                assert len(times) == ask.max_tokens and times == sorted(times) and times[0] > ask.at
    sizes = {line["system"]: line["resident_bytes"] for line in lines}
    assert sizes["replicas"] == 3 * sizes["base"] == 3 * sizes["swap"]
    assert sizes["base"] < sizes["decoupled"] < sizes["replicas"]


def test_the_gates_hold(folder: Path) -> None:
    exact(folder)


def test_a_delta_that_is_left_out_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(Ours):
        def serve(self, asks: Sequence[Ask]) -> list[Served]:
            return super().serve([replace(ask, terms=ask.terms[1:]) for ask in asks])

    monkeypatch.setattr(serving_gates, "Ours", Forgetful)
    with pytest.raises(GateFailed, match="all at once: answers .* are not those of whole models"):
        exact(folder)


def test_answers_that_are_too_short_are_noticed() -> None:
    work = short(("base",))
    served = [Served([1.0] * ask.max_tokens, [1] * ask.max_tokens) for ask in work.asks]
    check_tokens(work, {"base": served}, torch.float32)
    served[2].tokens.pop()
    with pytest.raises(GateFailed, match="base gave 3 tokens of 4"):
        check_tokens(work, {"base": served}, torch.float32)


def test_works_are_the_same_every_time() -> None:
    assert works(False) == works(False)
    assert set(works(True)) <= set(works(False))
    for work in works(False).values():
        assert all(number < work.num_deltas for ask in work.asks for number, _ in ask.terms)
        assert [ask.at for ask in work.asks] == sorted(ask.at for ask in work.asks)


@pytest.mark.parametrize("popularity", POPULARITY)
def test_popularity(popularity: str) -> None:
    work = over_time("", 400, 2.0, 8, popularity, 0.05, ("decoupled",))
    counts = [sum(ask.terms == terms for ask in work.asks) for terms in plain(range(8))]
    if popularity == "identical":
        assert counts == [400, *[0] * 7]
    elif popularity == "distinct":
        assert counts == [50] * 8
    elif popularity == "uniform":
        assert 25 < min(counts) <= max(counts) < 80
    else:
        assert counts[0] / counts[1] == pytest.approx(2, rel=0.4) and counts[0] > 5 * counts[7]
    assert work.asks[-1].at == pytest.approx(200, rel=0.2)


def test_sums_are_different_recipes_of_all_sizes() -> None:
    found = sums(8, 4)
    assert len(set(found)) == 8 and {len(terms) for terms in found} == {1, 2, 3}
    assert len({recipe(terms).hash for terms in found if recipe(terms)}) == 8
    assert recipe(()) is None


def test_drawn_deltas(folder: Path) -> None:
    backbone = Backbone.load(folder)
    one, again, other = (draw_delta(backbone, 0.05, seed) for seed in (1, 1, 2))
    name = next(iter(one.matrices))
    assert torch.equal(one.matrices[name].positions, again.matrices[name].positions)
    assert not torch.equal(one.matrices[name].positions, other.matrices[name].positions)
    kept = sum(len(rows.positions) for rows in one.matrices.values())
    whole = sum(backbone.specs[name].numel for name in one.matrices)
    assert kept / whole == pytest.approx(0.05, rel=0.05)


def test_the_table_compares_round_by_round() -> None:
    work = at_once("eight", [()] * 2, 0.0, ("base", "swap"))
    head = {"started": "2026-01-01 00:00", "processor": "a processor", "cores": 2, "threads": 1}
    head |= {"shape": "2M", "dtype": "fp32"}
    line = {"kind": "serving", "work": work.name, "resident_bytes": 2_000_000, "num_tokens": 4, "arrivals": [0.0, 1.0]}
    times = [[[0.5, 0.75], [1.5, 2.0]]] * 3
    base = line | {"system": "base", "wall": [2.0] * 3, "cpu": [1.0, 2.0, 4.0], "times": times}
    swap = line | {"system": "swap", "wall": [4.0] * 3, "cpu": [3.0, 5.0, 12.0], "times": times}
    assert ratios(swap, base) == [3.0, 2.5, 3.0]
    shown = markdown(head, [base, swap])
    assert "a processor, 2 cores, 1 thread(s), Llama 2M, fp32; medians of 3 rounds" in shown
    row = f"| swap | 5.00 (3.00..12.00) | {statistics.median([3.0, 2.5, 3.0]):.2f} | 1 | 500 / 500 | 250 / 500 |"
    assert row in shown
