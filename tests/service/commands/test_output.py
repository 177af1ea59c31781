from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.commands import output
from patchbay_server.commands.output import BYTES, printable, progress, size_text


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown == text if text.isprintable() else shown != text


def test_sizes() -> None:
    assert size_text(999) == "999 bytes"
    assert size_text(12_345) == "12.3 kB (12,345 bytes)"


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with progress("compress") as update:
        update(0, 4, "compare a")
        update(0, 3, "b\x1b[2J")
        update(2, 3, "c")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "compress: c" in captured.err and "2/3" in captured.err


def test_no_bar_in_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with progress("push", BYTES) as update:
        update(0, 3, "a")
        update(3, 3, "a")
    assert capsys.readouterr() == ("", "")


def test_lines_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is left of the stage, which may have begun in the middle."""
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(output, "LINE_EVERY_S", 0.0)
    with progress("pre-training") as update:
        update(400, 1000, "loss 1.2")
        update(401, 1000, "a\x1b[2J")
        update(1000, 1000, "")
    with progress("push", BYTES) as update:
        update(12_345, 2_000_000, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pre-training: 400 of 1,000, loss 1.2" and lines[3] == "push: 12.3 kB of 2.0 MB"
    assert re.fullmatch(r"pre-training: 401 of 1,000, \d+:\d\d:\d\d left, a\\x1b\[2J", lines[1])
    assert lines[2] == "pre-training: 1,000 of 1,000, 0:00:00 left"
