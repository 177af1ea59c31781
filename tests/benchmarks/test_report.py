"""The report of a stored sample: one family whose fine-tunes count, with an older fine-tune, an answer given twice, a
task that does not count and sizes out of reach; and one family where nothing counts.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from benchmarks.aggregate import Point, load
from benchmarks.report import BEGIN, END, main, markdown, print_report, update_readme, write_report
from rich.console import Console

SAMPLE = Path(__file__).with_name("sample.jsonl")
RESULTS = load(SAMPLE)
POINTS = {(point.method, point.bits): point for point in RESULTS.points["text"]}


def test_means_are_over_tasks_that_count_with_the_latest_answers() -> None:
    point = POINTS["magnitude", 0.4]
    assert point.retained.value == pytest.approx(85.0)
    assert point.kl.value == pytest.approx(0.3)
    assert (point.tasks, point.asked) == (2, 2)
    assert point.bits_per_matrix_entry == pytest.approx(0.495)


def test_what_an_older_fine_tune_gave_is_not_mixed_in() -> None:
    assert ("magnitude", 2.0) not in POINTS


def test_a_task_weighs_the_same_however_many_seeds_it_has() -> None:
    assert POINTS["dare", 0.4].retained.value == pytest.approx((64 + 70) / 2)


def test_intervals_are_those_of_a_bootstrap_over_tasks_and_seeds() -> None:
    two_tasks, three_seeds = POINTS["magnitude", 0.4].retained, POINTS["dare", 0.4].retained
    assert (two_tasks.low, two_tasks.high) == (80.0, 90.0)
    assert 60.0 <= three_seeds.low < 64.0
    assert three_seeds.high == 70.0
    alone = POINTS["dare", 1.0].retained
    assert (alone.low, alone.value, alone.high) == (95.0, 95.0, 95.0)


def test_what_is_out_of_reach_is_said() -> None:
    assert (POINTS["dare", 1.0].tasks, POINTS["dare", 1.0].asked) == (1, 2)
    assert RESULTS.out_of_reach["text"] == [(0.05, "magnitude")]
    assert "larger: 0.05 bits: magnitude." in markdown(RESULTS)


def test_the_best_of_a_size_comes_first() -> None:
    order = [(point.bits, point.method) for point in RESULTS.points["text"]]
    assert order == [(0.4, "magnitude"), (0.4, "dare"), (1.0, "magnitude"), (1.0, "dare")]


def test_the_tables_say_machine_probe_and_what_does_not_count() -> None:
    text = markdown(RESULTS)
    assert "new machine" in text
    assert "old machine" not in text
    assert "| text | alpha | 100 | 0.900 [0.880, 0.920] | 0.300 | 33.3 | 0.800 | yes | 3,080 |" in text
    assert "| text | gamma | 100 | 0.600 [0.580, 0.620] | 0.300 | 50.0 | 0.700 | no | 1,540 |" in text
    sizes, kept = "| 0.4 | magnitude | 0.396 | 0.495 |", "85.0 [80.0, 90.0] | 85.0 [80.0, 90.0] | 0.3 [0.2, 0.4] |"
    assert f"{sizes} 0.765 | {kept} 2.0 | 2/2 |" in text
    assert text.endswith("### vision\n\nNo fine-tune of this family counts.")


def test_the_terminal_shows_the_same_rows() -> None:
    console = Console(file=io.StringIO())
    print_report(RESULTS, console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "85.0 [80.0, 90.0]" in shown
    assert "0.05 bits: magnitude" in shown


def test_the_readme_gets_its_tables_and_keeps_the_rest(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    for _ in range(2):
        main([str(SAMPLE), "--readme", str(readme)])
    text = readme.read_text("utf-8")
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old\n" not in text
    assert text.count(markdown(RESULTS)) == 1
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")


def test_a_readme_without_markers_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("mine", "utf-8")
    with pytest.raises(ValueError, match="has no <!-- results -->"):
        update_readme(RESULTS, readme, tmp_path / "p.png")
    assert readme.read_text("utf-8") == "mine"


def test_the_files_of_a_report_are_named_after_its_stem(tmp_path: Path) -> None:
    assert [file.name for file in write_report(RESULTS, tmp_path / "run")] == ["run.md", "run.png"]


def test_nothing_but_results_is_needed(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert load(empty).points == {}
    assert isinstance(RESULTS.points["text"][0], Point)


def test_the_readme_that_is_here_has_the_markers_and_names_the_command() -> None:
    text = (Path(__file__).parents[2] / "benchmarks" / "README.md").read_text("utf-8")
    assert text.index(BEGIN) < text.index(END)
    assert "benchmarks.quality_compression" in text


def test_no_file_is_longer_than_one_idea() -> None:
    files = (Path(__file__).parents[2] / "benchmarks").rglob("*.py")
    assert not [str(file) for file in files if len(file.read_text("utf-8").splitlines()) > 300]
