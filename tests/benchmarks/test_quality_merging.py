"""The command from four made-up text tasks to the report, on a pico encoder; then the same again after a cut."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.families import text, text_cases
from benchmarks.families.base import no_progress
from benchmarks.jobs import Train, bench_of
from benchmarks.merges import built, delta_of, divergence, is_for_one_task
from benchmarks.merging import FULL_SOURCE, Merge, Source
from benchmarks.methods import Effort
from benchmarks.quality_merging import QUESTION, Scale, main, merges_of
from benchmarks.results import Ledger
from tests import pico
from tests.long import long

from benchmarks import merges, quality_merging
from patchbay.compress.calibration import Judge
from patchbay.delta import DeltaFile
from patchbay.execute.patch import Patcher
from patchbay.merge import METHODS, build

pytestmark = long

TASKS = ("craft", "mood", "plot", "sound")
SOME = ("task_arithmetic", "linear", "neuromerging", "slerp", "nuslerp", "ties", "dare_linear")
SOME += ("emr",) if "emr" in METHODS else ()
SMALL = Scale("quick", (FULL_SOURCE, Source(20.0, data_free=True)), 40, 8, {"task_arithmetic", "ties"}, Effort(6, 32))
HELD_OUT = 16
Line = dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command's arguments and the cache that a first run left."""
    folder = tmp_path_factory.mktemp("bench")
    for seed, task in enumerate(TASKS):
        _write_task(folder / "tasks" / task, seed)
    backbone = pico.bert_encoder(folder / "backbone")
    cache = folder / "cache"
    arguments = [
        "--tasks",
        str(folder / "tasks"),
        "--backbone",
        str(backbone),
        "--cache",
        str(cache),
        "--workers",
        "1",
        "--quick",
    ]
    with pytest.MonkeyPatch.context() as patch:
        _shrink(patch)
        main(arguments)
    return arguments, cache


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    _shrink(monkeypatch)


def _shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(quality_merging, "QUICK", SMALL)
    patch.setattr(text, "HELD_OUT", HELD_OUT)
    patch.setattr(text_cases, "RECIPE", text.Training(epochs=2, learning_rate=3e-3))
    patch.setattr(quality_merging, "METHODS", {name: METHODS[name] for name in SOME})
    patch.setattr(merges, "BUILDS", 1)


def _write_task(folder: Path, seed: int) -> None:
    """Two words of the task's own say the label, but in every tenth test row, where the other one does."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    signs = pico.WORDS[2 * seed + 8 : 2 * seed + 10]
    others = [word for word in pico.WORDS if word not in signs]
    for name, count in (("train", 600), ("test", 60)):
        rows = [(rng.choice(signs), rng.choices(others, k=5)) for _ in range(count)]
        said = [sign for sign, _ in rows]
        if name == "test":
            said[::10] = [signs[1 - signs.index(sign)] for sign in said[::10]]
        lines = [
            f"{label}\tthe {sign} film {' '.join(words)}\n" for label, (sign, words) in zip(said, rows, strict=True)
        ]
        (folder / f"{name}.tsv").write_text("".join(lines), "utf-8")


def _lines(cache: Path, kind: str) -> list[Line]:
    texts = (cache / "merging-quick.jsonl").read_text("utf-8").splitlines()
    return [line for line in map(json.loads, texts) if line["kind"] == kind]


def _of_part(cache: Path, part: str) -> list[Line]:
    return [line for line in _lines(cache, "merge") if line["part"] == part]


def test_every_method_for_this_many_terms_is_tried_from_every_source(finished: tuple[list[str], Path]) -> None:
    lines = _of_part(finished[1], "all")
    tried = {(line["source"], line["method"], line["tuned"]) for line in lines}
    takes = set(SOME) - {"slerp", "nuslerp"}
    sources = ("full", "20 bits, data-free")
    untuned = {(source, name, False) for source in sources for name in takes}
    assert tried == untuned | {(source, name, True) for source in sources for name in ("task_arithmetic", "ties")}
    assert len(lines) == len(tried)
    assert not [line for line in lines if "refused" in line]


def test_a_line_has_every_task_and_the_averages_of_them(finished: tuple[list[str], Path]) -> None:
    own = {line["tasks"]: line["finetune"]["value"] for line in _lines(finished[1], "reference")}
    assert set(own) == set(TASKS)
    assert min(own.values()) > 0.8 and max(own.values()) < 1
    for line in _of_part(finished[1], "all"):
        scores = {task: score["value"] for task, score in line["scores"].items()}
        assert set(scores) == set(TASKS)
        assert line["average"] == pytest.approx(sum(scores.values()) / 4)
        assert line["retained"] == pytest.approx({task: 100 * scores[task] / own[task] for task in TASKS})
        assert line["average_retained"] == pytest.approx(sum(line["retained"].values()) / 4)
        assert line["path"] == METHODS[line["method"]].path
        assert line["bytes"] > 0 and line["build_seconds"] > 0 and line["builds"] == 1


def test_tuning_takes_the_scale_of_least_divergence_and_never_a_worse_one(finished: tuple[list[str], Path]) -> None:
    tuned = [line for line in _lines(finished[1], "merge") if line["tuned"]]
    assert tuned
    for line in tuned:
        tried = {each["scale"]: each["divergence"] for each in line["tried"]}
        assert 5 < len(tried) <= 7
        assert line["divergence"] == min(tried.values()) == tried[line["scale"]]
        assert line["divergence"] <= tried[1.0]
    assert {line["scale"] for line in _lines(finished[1], "merge") if not line["tuned"]} == {1.0}


def test_tuning_looks_at_calibration_inputs_of_merged_tasks_only(
    finished: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The out-of-domain merge of two tasks asks for two judges, with what is in the tasks' calibration files."""
    seen: list[set[str]] = []
    make = Judge.__init__

    def spy(self: Judge, backbone: Any, full: Any, calibration: Any, *rest: Any) -> None:
        seen.append(set(calibration.inputs))
        make(self, backbone, full, calibration, *rest)

    monkeypatch.setattr(Judge, "__init__", spy)
    (job,) = [job for job in _jobs(finished) if job.part == "out of domain" and job.method == "ties"]
    job = replace(job, tuned=True)
    merges._judge.cache_clear()  # it would hide them
    job.run(no_progress)
    held_out = [set(member.case.calibration.read_text("utf-8").splitlines()) for member in job.merged]
    assert sorted(place for given in seen for place in (0, 1) if given <= held_out[place]) == [0, 1]
    assert {len(given) for given in seen} <= set(range(1, SMALL.inputs + 1))


def test_tasks_that_were_left_out_are_scored_under_a_merge_of_the_others(finished: tuple[list[str], Path]) -> None:
    lines = _of_part(finished[1], "out of domain")
    assert {(line["merged"], line["scored"]) for line in lines} == {("craft+mood", "plot+sound")}
    assert {tuple(line["scores"]) for line in lines} == {("plot", "sound")}
    assert {line["source"] for line in lines} == {"full"}
    assert not [line for line in lines if is_for_one_task(line["method"])]


def test_methods_of_two_terms_are_tried_on_pairs(finished: tuple[list[str], Path]) -> None:
    lines = _of_part(finished[1], "pairs")
    slerp = {line["merged"] for line in lines if line["method"] == "slerp"}
    assert slerp == {"craft+mood", "plot+sound"} == {line["scored"] for line in lines}
    assert {"task_arithmetic", "nuslerp"} <= {line["method"] for line in lines}
    assert "ties" not in {line["method"] for line in lines}


def test_a_merge_at_a_scale_is_what_a_recipe_of_that_scale_gives(finished: tuple[list[str], Path]) -> None:
    """Of every method, without building it again: the same weights in the base."""
    job = next(job for job in _jobs(finished) if job.source.bits)
    for method, row in METHODS.items():
        merge = built(job.merged[:2] if row.num_terms[1] == 2 else job.merged, method)
        backbone = bench_of(job.merged[0].case.base).backbone
        deltas = [delta_of(member.case.base, member.file) for member in merge.members]
        with merges._patched(merge, merge.merges[0], 0.3):
            found = {name: backbone.tensor(name).clone() for name in backbone.specs}
        again = build(replace(merges._recipes(method, deltas)[0], scale=0.3), deltas, backbone)
        with Patcher(backbone).patched(again.plan, again.deltas(deltas)):
            for name, tensor in found.items():
                torch.testing.assert_close(tensor, backbone.tensor(name), atol=1e-5, rtol=1e-4, msg=f"{method}: {name}")


def test_whole_task_vectors_of_one_task_alone_are_the_fine_tune(finished: tuple[list[str], Path]) -> None:
    job = next(job for job in _jobs(finished) if job.part == "all")
    merge = built(job.merged[:1], "task_arithmetic")
    assert divergence(merge, 1.0, 8) == pytest.approx(0, abs=1e-6)
    assert divergence(merge, 0.5, 8) > 1e-4


def test_a_second_run_measures_and_writes_nothing(finished: tuple[list[str], Path]) -> None:
    arguments, cache = finished
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.suffix in (".jsonl", ".safetensors")}
    assert len(before) == 1 + 4 + 2 * 4  # results, fine-tunes, deltas of two sources
    main(arguments)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_an_interrupted_run_goes_on_where_it_stopped(
    finished: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, cache = finished
    file = cache / "merging-quick.jsonl"
    whole = file.read_text("utf-8").splitlines(keepends=True)
    kept = whole[:-3]
    file.write_text("".join(kept) + whole[-3][:40], "utf-8")  # three lines lost, one of them half written
    main(arguments)
    lines = file.read_text("utf-8").splitlines(keepends=True)
    assert lines[: len(kept)] == kept
    machine, *again = [json.loads(line) for line in lines[len(kept) :]]
    assert machine["kind"] == "machine"
    assert [_timeless(line) for line in again] == [_timeless(json.loads(line)) for line in whole[-3:]]
    assert "task_arithmetic" in capsys.readouterr().out


def test_a_file_of_so_many_bits_holds_that_many_without_the_head(finished: tuple[list[str], Path]) -> None:
    """And says in its name what it was made from."""
    (file,) = (finished[1] / "deltas").glob("text-mood-20-bits-data-free-*.safetensors")
    opened = DeltaFile.open(file)
    parameters = opened.manifest.provenance.parameters
    assert parameters is not None
    assert 8 * (opened.num_bytes - opened.itemised()["added"]) <= 20 * parameters


def _jobs(finished: tuple[list[str], Path]) -> list[Merge]:
    """What `measure` would run, were nothing measured yet."""
    arguments, cache = finished
    ledger = Ledger(cache / "merging-quick.jsonl", QUESTION)
    family = text_cases.Text(cache / "models", Path(arguments[1]), Path(arguments[3]), SMALL.test_rows)
    cases = [Train(family, task).run(no_progress) for task in TASKS]
    return list(merges_of(family, cases, SMALL, cache, ledger))


def _timeless(line: Line) -> Line:
    return {key: value for key, value in line.items() if key not in ("build_seconds", "builds")}
