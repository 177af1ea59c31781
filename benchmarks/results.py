"""The results of a benchmark as JSON lines: appended one by one, so that an interruption loses at most one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def read_lines(file: Path) -> list[Line]:
    """Every complete line; a last one that was cut short is left out. No file, no lines."""
    if not file.is_file():
        return []
    complete = file.read_bytes().rpartition(b"\n")[0]
    return [json.loads(text) for text in complete.splitlines()]


class Ledger:
    """A results file with the lines that it holds. `key_fields` say which lines answer the same question."""

    def __init__(self, file: Path, key_fields: Sequence[str]) -> None:
        self.file = file
        self.key_fields = tuple(key_fields)
        self.lines = read_lines(file)
        self._found = {self.key(line): line for line in self.lines}
        file.parent.mkdir(parents=True, exist_ok=True)
        _cut_partial_line(file)

    def key(self, line: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(line.get(field) for field in self.key_fields)

    def find(self, line: Mapping[str, Any]) -> Line | None:
        """The line that answers the same question as `line`."""
        return self._found.get(self.key(line))

    def append(self, line: Line) -> None:
        """On disk when it returns."""
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(_finite(line), sort_keys=True, allow_nan=False) + "\n")
            out.flush()
            os.fsync(out.fileno())
        self.lines.append(line)
        self._found[self.key(line)] = line


def _cut_partial_line(file: Path) -> None:
    if file.is_file():
        with file.open("rb+") as out:
            data = out.read()
            if not data.endswith(b"\n"):
                out.truncate(data.rfind(b"\n") + 1)


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: such a number is written as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
