"""The command from two made-up text tasks to the report, on a pico encoder; then the same again after interruptions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from benchmarks.families import text, text_cases
from benchmarks.methods import METHODS, Effort
from benchmarks.quality_compression import Scale, main
from tests import pico

from benchmarks import claims, quality_compression

SMALL = Scale("quick", (0.01, 40.0), tuple(METHODS), 2, 40, 2, 1.0, 1, 1, Effort(6, 32))
TINY_BITS, LARGE_BITS = SMALL.bits
HELD_OUT = 16
Line = dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command's arguments and the cache that a first run left."""
    folder = tmp_path_factory.mktemp("bench")
    _write_task(folder / "tasks" / "mood")
    backbone = pico.bert_encoder(folder / "backbone")
    cache = folder / "cache"
    arguments = ["--tasks", str(folder / "tasks"), "--backbone", str(backbone), "--families", "text"]
    arguments += ["--cache", str(cache), "--workers", "1", "--quick"]
    with pytest.MonkeyPatch.context() as patch:
        _shrink(patch)
        main(arguments)
    return arguments, cache


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    _shrink(monkeypatch)


def _shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(quality_compression, "QUICK", SMALL)
    patch.setattr(text, "HELD_OUT", HELD_OUT)
    patch.setattr(text_cases, "RECIPE", text.Training(epochs=1, learning_rate=3e-3))


def _write_task(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for name, count in (("train", 600), ("test", 60)):
        rows = [(rng.choice(["bad", "good"]), rng.choices(pico.WORDS, k=5)) for _ in range(count)]
        lines = [f"{label}\tthe {label} film {' '.join(words)}\n" for label, words in rows]
        (folder / f"{name}.tsv").write_text("".join(lines), "utf-8")


def _lines(cache: Path, kind: str) -> list[Line]:
    texts = (cache / "compression-quick.jsonl").read_text("utf-8").splitlines()
    return [line for line in map(json.loads, texts) if line["kind"] == kind]


def test_every_method_is_tried_at_every_size_with_its_seeds(finished: tuple[list[str], Path]) -> None:
    cells = _lines(finished[1], "cell")
    tried = {(line["method"], line["bits"], line["seed"]) for line in cells}
    seeds = {name: range(2 if method.is_random else 1) for name, method in METHODS.items()}
    assert tried == {(name, bits, seed) for name in METHODS for bits in SMALL.bits for seed in seeds[name]}
    assert len(cells) == len(tried)
    assert {line["rows"] for line in cells} == {40}


def test_no_file_is_larger_than_asked_and_the_head_is_apart(finished: tuple[list[str], Path]) -> None:
    (reference,) = _lines(finished[1], "reference")
    assert reference["head_bytes"] == pytest.approx((pico.HIDDEN + 1) * 2 * 4, rel=0.1)  # compressed floats
    assert 0 <= reference["probe"] <= 1
    assert 0 < reference["statistics_bits"] < 1
    for line in _lines(finished[1], "cell"):
        if line["bits"] == TINY_BITS:
            assert "bytes" in line["unreachable"]
        else:
            body = 8 * (line["bytes"] - reference["head_bytes"])
            assert line["bits_per_parameter"] == pytest.approx(body / reference["parameters"])
            assert line["bits_per_matrix_entry"] == pytest.approx(body / reference["matrices"])
            assert line["bits_per_parameter"] <= LARGE_BITS


def test_whole_differences_keep_the_fine_tune(finished: tuple[list[str], Path]) -> None:
    whole = [line for line in _lines(finished[1], "cell") if line["method"] == "magnitude" and "kl" in line]
    (reference,) = _lines(finished[1], "reference")
    assert [line["agreement"] for line in whole] == [1.0]
    assert whole[0]["kl"] < 1e-3 < reference["base_kl"]


def test_losing_nothing_has_a_size_and_is_said_where_it_does_not_fit(finished: tuple[list[str], Path]) -> None:
    cache = finished[1]
    tiny, large = sorted((c for c in _lines(cache, "cell") if c["method"] == "lossless"), key=lambda line: line["bits"])
    assert "unreachable" in tiny and tiny["needed"] == pytest.approx(large["bits_per_parameter"], rel=1e-3)
    assert 16 < tiny["needed"] < 40
    assert (large["agreement"], large["kl"], large["relative_error"]) == (1.0, pytest.approx(0, abs=1e-12), 0.0)
    remark = f"0.01 bits: {', '.join(sorted(METHODS))}. lossless: {tiny['needed']:.2f} bits/param."
    assert remark in (cache / "compression-quick.md").read_text("utf-8")


def test_a_second_run_measures_and_trains_nothing(finished: tuple[list[str], Path]) -> None:
    arguments, cache = finished
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.suffix in (".jsonl", ".safetensors")}
    assert len(before) == 2
    main(arguments)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_an_interrupted_run_goes_on_where_it_stopped(
    finished: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, cache = finished
    file = cache / "compression-quick.jsonl"
    whole = file.read_text("utf-8").splitlines(keepends=True)
    kept = whole[:-3]
    file.write_text("".join(kept) + whole[-3][:40], "utf-8")  # three lines lost, one of them half written
    main(arguments)
    lines = file.read_text("utf-8").splitlines(keepends=True)
    assert lines[: len(kept)] == kept
    machine, *again = [json.loads(line) for line in lines[len(kept) :]]
    assert machine["kind"] == "machine"
    assert [_timeless(line) for line in again] == [_timeless(json.loads(line)) for line in whole[-3:]]
    assert "mood" in capsys.readouterr().out


def test_lost_outputs_are_taken_again_but_no_result(finished: tuple[list[str], Path]) -> None:
    arguments, cache = finished
    (outputs,) = (cache / "outputs").glob("*.npy")
    before, cells = outputs.read_bytes(), len(_lines(cache, "cell"))
    outputs.unlink()
    main(arguments)
    assert outputs.read_bytes() == before
    assert len(_lines(cache, "cell")) == cells


def test_the_report_is_written(finished: tuple[list[str], Path]) -> None:
    cache = finished[1]
    assert "| text | mood | 40 |" in (cache / "compression-quick.md").read_text("utf-8")
    assert (cache / "compression-quick.png").read_bytes().startswith(b"\x89PNG")


def test_tasks_without_a_backbone_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--tasks", "somewhere"])
    assert "needs both --tasks and --backbone" in capsys.readouterr().err


def _timeless(line: Line) -> Line:
    return {key: value for key, value in line.items() if key != "compress_seconds"}


def test_published_nps_is_measured_at_equal_density(
    finished: tuple[list[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the fine-tunes that are there, once; the table has a row for every variant and density."""
    arguments, cache = finished
    monkeypatch.setattr(claims, "DENSITIES", (0.5, 1.0))
    claims.main(arguments)
    lines = _lines(cache, "claim")
    assert {(line["method"], line["bits"]) for line in lines} == {(v, d) for v in claims.VARIANTS for d in (0.5, 1.0)}
    kl = {(line["method"], line["bits"]): line["kl"] for line in lines}
    assert kl["magnitude", 1.0] < kl["magnitude", 0.5]
    capsys.readouterr()
    claims.main(arguments)
    assert len(_lines(cache, "claim")) == len(lines)
    reference = _lines(cache, "reference")[-1]
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("| text")]
    assert [row.split(" | ")[1] for row in rows] == 2 * list(claims.VARIANTS) * reference["counts"]


def test_a_table_of_claims_is_of_what_counts_and_of_the_latest_fine_tune() -> None:
    def claim(task: str, finetune: str, kl: float) -> Line:
        scores = {"score": 0.9, "retained": 99.0, "agreement": 0.95, "kl": kl}
        asked = {"kind": "claim", "family": "text", "method": "magnitude", "bits": 0.05}
        return {**asked, "task": task, "finetune": finetune, **scores}

    def reference(task: str, finetune: str, counts: bool) -> Line:
        return {"kind": "reference", "family": "text", "task": task, "finetune": finetune, "counts": counts}

    lines = [reference("a", "old", True), claim("a", "old", 9.0), reference("a", "new", True), claim("a", "new", 0.5)]
    lines += [reference("b", "one", True), claim("b", "one", 9.0), claim("b", "one", 0.25)]
    lines += [reference("c", "two", False), claim("c", "two", 9.0)]
    row = claims.table(lines).splitlines()[-1]
    assert row == "| text | magnitude | 0.05 | 0.900 | 99.0 | 95.0 | 0.375 | 2 |"
