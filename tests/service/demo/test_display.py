"""Steps of a demo: bars on a terminal, lines in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from patchbay_server.demo import display
from patchbay_server.demo.display import progress, step_of


def shown(*, is_terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=120)
    with progress(console) as bar, step_of(bar, "train: [left]") as step:
        for done in range(4):
            step(done, 3, f"loss {done}")
    return stream.getvalue()


def test_a_log_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LINE_EVERY_S", 0.0)
    lines = shown(is_terminal=False).splitlines()
    assert lines[0] == "train: [left] ..." and lines[-1] == "train: [left]: done in 0 s"
    assert lines[1:-1] == [f"train: [left]: {done} of 3, loss {done}" for done in range(4)]


def test_a_log_is_not_flooded() -> None:
    assert len(shown(is_terminal=False).splitlines()) == 2


def test_a_terminal_has_bars() -> None:
    text = shown(is_terminal=True)
    assert "done in" not in text and "3/3" in text
