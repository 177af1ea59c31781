"""All systems serve the same requests, gates stop a wrong one, and tables are of what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.resident import resident
from benchmarks.serving_gates import GateFailed, check_tokens, exact
from benchmarks.systems.base import Ask, Served
from benchmarks.systems.models import Drawn, Size
from benchmarks.systems.opened import Setting, open_systems
from benchmarks.systems.ours import Ours
from benchmarks.systems.shapes import make_base, opened, recipe
from benchmarks.workload import EVERY, POPULARITY, SOME, Work, at_once, over_time, plain, sums, works
from tests.engine.mixed import prompts
from tests.long import long

from benchmarks import serving, serving_gates

SHORT = Work("short", (), 3, SOME, (*EVERY, "generate", "wrapped"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("2M", tmp_path_factory.mktemp("bases"), torch.float32)


@pytest.fixture(scope="module")
def model(folder: Path) -> Drawn:
    return Drawn(folder)


def short(systems: Sequence[str]) -> Work:
    """Six requests on three deltas, of unlike lengths, the last a moment later."""
    asked = prompts(6, 1, 12)
    asks = [Ask(prompt, 2 + number % 3, ((number % 3, 1.0),)) for number, prompt in enumerate(asked)]
    return replace(SHORT, asks=(*asks[:-1], replace(asks[-1], at=0.05)), systems=tuple(systems))


@long
def test_every_system_answers(model: Drawn) -> None:
    """Those with the same deltas give the same tokens: else `measure` raises."""
    work = short(SHORT.systems)
    lines = serving.measure(work, model, 2)
    assert [line["system"] for line in lines] == list(work.systems)
    for line in lines:
        assert len(line["wall"]) == len(line["cpu"]) == len(line["times"]) == 2
        for served in line["times"]:
            for ask, times in zip(work.asks, served, strict=True):
                assert len(times) == ask.max_tokens and times == sorted(times) and times[0] > ask.at
        assert list(line["ttft"]) == list(line["itl"]) == list(line["e2e"]) == ["p50", "p95", "p99"]
        assert len(line["goodput"]) == 2 and all(answers >= 0 for answers in line["goodput"])
        assert line["objective"] == lines[0]["objective"] and line["objective"]["first"] > 0
        assert len(line["delta_bytes"]) == 3
    sizes = {line["system"]: line["resident_bytes"] for line in lines}
    assert sizes["replicas"] == 3 * sizes["base"] == 3 * sizes["swap"]
    assert sizes["base"] == sizes["wrapped"] < sizes["decoupled"] == sizes["automatic"] < sizes["replicas"]


def test_what_is_asked_for_at_once_has_no_goodput(model: Drawn) -> None:
    [line] = serving.measure(at_once("one", [()], Size(0.0), ["base"], answer=2), model, 1)
    assert "goodput" not in line and "objective" not in line and line["delta_bytes"] == []


def test_rounds_remember_no_texts(model: Drawn) -> None:
    """Else every round but the first would find its prompts read."""
    setting = Setting(model.load, {}, [], model.base)
    ask = Ask(tuple(range(5, 105)), 2)
    with open_systems(["base"], setting) as systems:
        base = systems["base"]
        assert isinstance(base, Ours)
        assert base.serve([ask])[0].tokens == base.serve([ask])[0].tokens
        counts = base.engine.language.generator.counts
        assert counts.prompt_tokens == 200 and counts.prefix_tokens == 0


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
    work = over_time("", 400, 2.0, 8, popularity, SOME, ("decoupled",))
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


def test_drawn_deltas(model: Drawn) -> None:
    backbone = model.load()
    files = model.delta_files(2, SOME)
    one, other = (opened(file, backbone) for file in files)
    name = next(iter(one.matrices))
    assert not torch.equal(one.matrices[name].positions, other.matrices[name].positions)
    kept = sum(len(rows.positions) for rows in one.matrices.values())
    whole = sum(backbone.specs[name].numel for name in one.matrices)
    assert kept / whole == pytest.approx(0.05, rel=0.05)
    before = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    assert [file.read_bytes() for file in model.delta_files(2, SOME)] == before


def test_signs_have_one_size(model: Drawn) -> None:
    [file], [other] = model.delta_files(1, Size(0.05, signs=True)), model.delta_files(1, SOME)
    delta = opened(file, model.load())
    for rows in delta.matrices.values():
        assert len(rows.values.abs().unique()) == 1 and len(rows.values.unique()) == 2
    assert file.stat().st_size < other.stat().st_size


def test_what_many_deltas_take(model: Drawn) -> None:
    found = resident(model)
    [file] = model.delta_files(1, Size(0.01, signs=True))
    backbone = model.load()
    one = opened(file, backbone).num_bytes
    assert found["bytes"] > found["deltas"] * one > 0 and found["bytes"] % found["deltas"] == 0
    assert found["file_bytes"] == 64 * file.stat().st_size
    assert found["dense_bytes"] == backbone.num_bytes // 2  # it is resident in fp32


@long
def test_the_command_prints_machine_gates_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gated: list[Path] = []
    monkeypatch.setattr(serving, "exact", gated.append)
    out = tmp_path / "lines.jsonl"
    given = ["--quick", "--model", "2M", "--rounds", "1", "--only", "base", "--cache", str(tmp_path), "--out", str(out)]
    serving.main(given)
    shown = capsys.readouterr().out
    assert len(gated) == 1 and "GB/s: memory" in shown and "| wrapped |" in shown and "64 deltas of signs" in shown
    head, *lines = map(json.loads, out.read_text("utf-8").splitlines())
    assert head["kind"] == "machine" and head["model"] == "2M" and head["memory_bytes_s"] > 0
    assert [line["kind"] for line in lines] == ["serving"] * 4 + ["resident"]

    def fail(folder: Path) -> None:
        raise GateFailed("it is wrong")

    monkeypatch.setattr(serving, "exact", fail)
    with pytest.raises(SystemExit, match="no number is worth printing: it is wrong"):
        serving.main(given)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="no such work: lunch; there are: base; 8 deltas"):
        serving.main([*given[:6], "lunch", *given[7:]])
