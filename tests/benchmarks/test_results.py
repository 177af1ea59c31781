from __future__ import annotations

from pathlib import Path

from benchmarks.results import Ledger, read_lines

KEY = ("task", "seed")


def test_lines_come_back_and_the_latest_answer_is_found(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new" / "r.jsonl", KEY)
    for score in (0.25, 0.5):
        ledger.append({"task": "a", "seed": 0, "score": score})
    for opened in (ledger, Ledger(ledger.file, KEY)):
        assert opened.find({"task": "a", "seed": 0, "anything": "else"}) == {"task": "a", "seed": 0, "score": 0.5}
        assert opened.find({"task": "a", "seed": 1}) is None
    assert [line["score"] for line in read_lines(ledger.file)] == [0.25, 0.5]


def test_a_line_that_was_cut_short_is_dropped_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"task": "a", "seed": 0}\n{"task": "b", "se', "utf-8")
    assert read_lines(file) == [{"task": "a", "seed": 0}]
    ledger = Ledger(file, KEY)
    ledger.append({"task": "b", "seed": 0})
    assert file.read_text("utf-8") == '{"task": "a", "seed": 0}\n{"seed": 0, "task": "b"}\n'


def test_what_json_cannot_say_is_null(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "r.jsonl", KEY)
    ledger.append({"task": "a", "kl": float("inf"), "score": float("nan")})
    assert read_lines(ledger.file) == [{"task": "a", "kl": None, "score": None}]
