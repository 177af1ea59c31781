"""The evaluations of a search, in a file beside its output: what a command that was cut off goes on from.

JSON lines: a digest of everything the scores depend on, then one evaluation each. Knows nothing of what is searched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchbay.errors import InputError

if TYPE_CHECKING:
    from patchbay.compress.search import Evaluation

KIND = "patchbay search"


@dataclass
class SearchRecord:
    """One search's record in `file`, which is made with the first evaluation. `history` is what an earlier run left."""

    file: Path
    header: bytes
    history: Sequence[Evaluation] = ()
    size: int = 0  # bytes of whole lines

    @classmethod
    def open(cls, file: Path, digest: str) -> SearchRecord:
        """Reads what is there. A last line that was cut off does not count.

        Raises InputError for the record of another search and for a file that is no record: neither is touched.
        """
        header = json.dumps({"kind": KIND, "digest": digest}).encode() + b"\n"
        data = file.read_bytes() if file.exists() else b""
        if header.startswith(data) and data != header:
            return cls(file, header)
        if not data.startswith(header):
            raise InputError(_why_not(file, data), param="out")
        history, size = _evaluations(data[len(header) :])
        return cls(file, header, history, len(header) + size)

    def add(self, evaluation: Evaluation) -> None:
        """On disk when this returns."""
        line = json.dumps({"point": evaluation.point, "score": evaluation.score}).encode() + b"\n"
        with self.file.open("ab") as file:
            file.truncate(self.size)
            file.write(line if self.size else self.header + line)
            file.flush()
            os.fsync(file.fileno())
            self.size = file.tell()

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)


def _why_not(file: Path, data: bytes) -> str:
    if not data.startswith(json.dumps({"kind": KIND}).encode()[:-1]):
        return f"{file} is no record of a search: move it away, or name another --out"
    return (
        f"{file} records a search with other models, inputs, options or another version: delete it to start anew, or "
        "name another --out"
    )


def _evaluations(data: bytes) -> tuple[tuple[Evaluation, ...], int]:
    """Those of whole lines, and how many bytes they take."""
    from patchbay.compress.search import Evaluation

    found, size = [], 0
    for line in data.splitlines(keepends=True):
        try:
            row: Any = json.loads(line)
            evaluation = Evaluation(tuple(map(float, row["point"])), float(row["score"]))
        except (ValueError, TypeError, KeyError):
            break
        if not line.endswith(b"\n"):
            break
        found.append(evaluation)
        size += len(line)
    return tuple(found), size
