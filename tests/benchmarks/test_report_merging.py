"""The report of lines that are made up: two tasks, older fine-tunes among them, an answer given twice, one refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.report_merging import BEGIN, END, load, main, markdown, update_readme, write_report

Line = dict[str, Any]
MACHINE = {
    "kind": "machine",
    "started": "2026-01-01 00:00",
    "processor": "some machine",
    **{"cores": 2, "workers": 1, "python": "3.11", "torch": "2", "patchbay": "0"},
}


def _score(value: float) -> Line:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def _reference(task: str, own: float, base: float) -> Line:
    return {"kind": "reference", "tasks": task, "rows": 100, "finetune": _score(own), "base": _score(base)}


def _merge(method: str, a: float, b: float, **fields: Any) -> Line:
    line = {
        **{"kind": "merge", "part": "all", "source": "full", "method": method, "tuned": False, "scale": 1.0},
        **{"tasks": "a+b", "merged": "a+b", "scored": "a+b", "rows": 250, "finetunes": "new", "path": "plan"},
        **{"bytes": 1_500_000, "build_seconds": 0.25, "half_width": 0.02},
        "average": (a + b) / 2,
        "scores": {"a": _score(a), "b": _score(b)},
        "retained": {"a": 100 * a / 0.9, "b": 100 * b / 0.8},
        "average_retained": 50 * (a / 0.9 + b / 0.8),
    }
    return line | fields


LINES: list[Line] = [
    MACHINE,
    _reference("a", 0.9, 0.3),
    _reference("b", 0.8, 0.4),
    _merge("old", 0.9, 0.8, finetunes="old"),
    _merge("fewer", 0.9, 0.8, tasks="a"),
    _merge("ties", 0.1, 0.1),
    _merge("ties", 0.45, 0.8),
    _merge("linear", 0.9, 0.6, tuned=True, scale=0.353553),
    _merge("linear", 0.9, 0.8, source="0.1 bits", path="delta"),
    {**_merge("wild", 0, 0), "refused": "these weights sum to nothing"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return _write(tmp_path / "run.jsonl", LINES)


def _write(file: Path, lines: list[Line]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file


def test_the_latest_answers_of_the_last_run_are_shown_the_best_of_a_source_first(file: Path) -> None:
    found = [(line["source"], line["method"]) for line in load(file).parts["all"]]
    assert found == [("full", "linear"), ("full", "ties"), ("0.1 bits", "linear")]


def test_the_tables_have_every_task_and_what_is_refused(file: Path) -> None:
    text = markdown(load(file))
    assert "some machine" in text
    assert "| a | 100 | 0.900 [0.800, 1.000] | 0.300 [0.200, 0.400] | 33.3 |" in text
    assert "| full | ties | 1 | 0.625 ± 0.020 | 75.0 | 0.450 | 0.800 | 0.25 | 1.50 | plan |" in text
    assert "| full | linear | 0.354 (tuned) | 0.750 ± 0.020 | 87.5 | 0.900 | 0.600 |" in text
    assert "Refused: wild of full: these weights sum to nothing." in text


def test_left_out_tasks_stand_beside_the_base_and_pairs_are_averaged(tmp_path: Path) -> None:
    left_out = _merge("ties", 0.45, 0.8, part="out of domain", merged="c", scored="a+b")
    pairs = [
        _merge("slerp", *each, part="pairs", merged=pair) for pair, each in {"a+b": (0.9, 0.8), "c+d": (0, 0)}.items()
    ]
    text = markdown(load(_write(tmp_path / "run.jsonl", [*LINES, left_out, *pairs])))
    assert "left out of the merge: a, b" in text
    assert "Their heads on the unchanged base: 0.350, 41.7 % retained." in text
    assert "| slerp | 1 | 0.425 | 50.0 | a+b 100.0, c+d 0.0 |" in text


def test_the_readme_gets_its_tables_and_keeps_the_rest(file: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    for _ in range(2):
        main([str(file), "--readme", str(readme)])
    text = readme.read_text("utf-8")
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n")
    assert "old\n" not in text
    assert text.count(markdown(load(file))) == 1
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_a_readme_without_markers_is_left_alone(file: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("mine", "utf-8")
    with pytest.raises(ValueError, match="has no <!-- merging results -->"):
        update_readme(load(file), readme, tmp_path / "p.png")
    assert readme.read_text("utf-8") == "mine"


def test_nothing_but_results_is_needed(tmp_path: Path) -> None:
    assert "Nothing is measured" in markdown(load(_write(tmp_path / "run.jsonl", [])))
    assert [file.name for file in write_report(load(tmp_path / "run.jsonl"), tmp_path / "run")] == ["run.md"]


def test_the_readme_that_is_here_has_the_markers_and_names_the_command() -> None:
    text = (Path(__file__).parents[2] / "benchmarks" / "README.md").read_text("utf-8")
    assert text.index(BEGIN) < text.index(END)
    assert "benchmarks.quality_merging" in text
