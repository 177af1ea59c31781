"""How many records an EDF or BDF file has and when they begin: by its header, by its bytes, and by the times in it.

Knows nothing of what was measured.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from patchbay.errors import InputError

BDF_MAGIC = b"\xffBIOSEMI"
FIXED_BYTES = 256  # of the header, and as many for each signal
COUNT, SECONDS, SIGNALS = slice(236, 244), slice(244, 252), slice(252, 256)  # of the header; -1 records: being written
_KIND = slice(192, 197)  # EDF+C, EDF+D, or what older files have there
_LABEL_BYTES, _SAMPLES, _SAMPLES_BYTES = 16, 216, 8  # of every signal; what is before its number of samples
_TIME = re.compile(rb"([+-]\d+(?:\.\d+)?)[\x14\x15]")


@dataclass(frozen=True, slots=True)
class Records:
    """`said`: how many by the header, -1 where it does not know; `data`: bytes behind the header, `record` of each and
    `seconds`. `times`: where in a record its beginning is written; None without annotations.
    """

    said: int
    header: int
    record: int
    data: int
    seconds: Decimal
    times: slice | None
    says_gaps: bool

    @classmethod
    def of(cls, source: Path | bytes) -> Records:
        """Raises ValueError for a header without numbers."""
        with _opened(source) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            head = file.read(FIXED_BYTES)
            count = int(head[SIGNALS])
            signals = file.read(FIXED_BYTES * count)
        width = 3 if head.startswith(BDF_MAGIC) else 2
        first = _SAMPLES * count
        sizes = [width * int(text) for text in _fields(signals[first:], count, _SAMPLES_BYTES)]
        labels = [text.strip() for text in _fields(signals, count, _LABEL_BYTES)]
        place = next((at for at, label in enumerate(labels) if label in (b"EDF Annotations", b"BDF Annotations")), None)
        times = None if place is None else slice(sum(sizes[:place]), sum(sizes[: place + 1]))
        said, seconds = int(head[COUNT]), Decimal(head[SECONDS].decode("latin-1").strip())
        header = FIXED_BYTES * (1 + count)
        return cls(said, header, sum(sizes), size - header, seconds, times, head[_KIND].endswith(b"+D"))

    @property
    def there(self) -> int:
        """Whole ones."""
        return self.data // self.record

    @property
    def has_more(self) -> bool:
        """Than its header says, with annotations: what is behind them may be no records, and has no times then."""
        return self.times is not None and 0 < self.said < self.there

    @property
    def read(self) -> int:
        return self.said if self.has_more else self.there

    def cut(self, source: Path | bytes) -> bytes:
        """Without what is behind those that the header says."""
        with _opened(source) as file:
            return file.read(self.header + self.read * self.record)

    def notes(self) -> list[str]:
        """Sentences on what was read, where it is not what the header says."""
        said, there = (f"{float(count * self.seconds):g}" for count in (self.said, self.there))
        if self.said > self.there:
            cut = f"the file was cut off: it has {there} of the {said} s that its header says, and those were read"
            return [cut]
        found = []
        if 0 <= self.said < self.there:
            what = f"the first {said}" if self.has_more else "all"
            found.append(f"the header says {said} s and the file has {there}, {what} of which were read")
        rest = self.data % self.record
        if rest:
            found.append(
                f"the file ends with {rest} bytes that are no whole record of {self.record}: they were left out"
            )
        return found


def check_times(source: Path | bytes, records: Records) -> None:
    """Raises InputError where a record does not begin when the one before it ends, by the times in its annotations."""
    if records.times is None:
        return
    onsets, seconds = _onsets(source, records, records.times), records.seconds
    steps = [second - first for first, second in pairwise(onsets)]
    wrong = next((number for number, step in enumerate(steps) if step != seconds), None)
    if wrong is None:
        return
    is_gap = steps[wrong] > seconds
    if len(set(steps)) == 1 and not (is_gap and records.says_gaps):
        raise InputError(
            f"the header says that a record has {_shown(seconds)} s, and by the times in the annotations one begins "
            f"every {_shown(steps[0])}: one of the two is wrong, mend it",
            param="file",
        )
    what = "gaps" if is_gap else "records that overlap"
    denied = " (EDF+D)" if records.says_gaps else ", which its header does not say (EDF+C)"
    raise InputError(
        f"the recording has {what}{denied}: record {wrong + 2} begins at {_shown(onsets[wrong + 1])} s, and the one "
        f"before it ends at {_shown(onsets[wrong] + seconds)}: send its pieces one by one",
        param="file",
    )


def _onsets(source: Path | bytes, records: Records, times: slice) -> list[Decimal]:
    found = []
    with _opened(source) as file:
        for number in range(records.read):
            file.seek(records.header + number * records.record + times.start)
            time = _TIME.search(file.read(times.stop - times.start))
            if time is None:
                message = f"record {number + 1} of {records.read} has no time in its annotations: the file is damaged"
                raise InputError(message, param="file")
            found.append(Decimal(time[1].decode()))
    return found


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _fields(text: bytes, count: int, width: int) -> Sequence[bytes]:
    return [text[width * number : width * (number + 1)] for number in range(count)]


def _shown(seconds: Decimal) -> str:
    return f"{float(seconds):g}"
