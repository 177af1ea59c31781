from __future__ import annotations

import os
import sys
from pathlib import Path
from threading import Thread

import pytest
from tests.waiting import until

from patchbay_server.replicas.log_socket import MAX_LINE, LogSocket, listened


def test_lines_of_many_come_whole(capfd: pytest.CaptureFixture[str]) -> None:
    lines = [f"{number}: {'x' * 9000}\n" for number in range(20)]
    with listened() as path:
        writers = [Thread(target=LogSocket(path).write, args=[line]) for line in lines]
        for writer in writers:
            writer.start()
        found = ""

        def all_there() -> bool:
            nonlocal found
            found += capfd.readouterr().err
            return found.count("\n") == len(lines)

        until(all_there)
    assert sorted(found.splitlines(keepends=True)) == sorted(lines)


def test_who_reads_no_log_does_not_keep_it_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", pipe)
        with listened() as path, pytest.raises(TimeoutError):
            stream = LogSocket(path, 0.2)
            while True:
                stream.write("z" * 10_000)
        os.read(reader, 1 << 20)
        os.close(reader)


def test_a_line_that_is_too_long_is_cut_and_nobody_there_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with listened() as path:
        stream = LogSocket(path)
        stream.write("y" * 2 * MAX_LINE)
        until(lambda: "y" * MAX_LINE in capfd.readouterr().err)
    with pytest.raises(OSError, match="."):
        stream.write("nobody")
    stream.close()
