from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
