"""Reads files of format version 1, which nothing writes any more: one zstd frame a stream, the manifest in the header.

Their streams are handed out under the names of version 2.
"""

from __future__ import annotations

from collections.abc import Callable

from patchbay.delta.container import Container
from patchbay.delta.entries import Dense, Lossless, LowRank, Sparse
from patchbay.delta.frames import unpack
from patchbay.delta.manifest import Manifest
from patchbay.delta.streams import Stream, stream_bounds
from patchbay.errors import MalformedDelta

PACKED = "patchbay.dense"
_DENSE_VALUES = ("fp32", "bf16", "raw")


def check_version1(container: Container, manifest: Manifest) -> None:
    """Nothing in the manifest that version 1 did not have, and exactly the streams that it implies."""
    if manifest.unused:
        raise MalformedDelta("manifest: unused: version 1 has no such field", param="unused")
    for name, entry in manifest.tensors.items():
        whole = isinstance(entry, Dense) and entry.values not in _DENSE_VALUES
        several = isinstance(entry, Sparse) and (entry.multiples > 1 or bool(entry.bands))
        if isinstance(entry, LowRank | Lossless) or whole or several or entry.neurons or entry.appended:
            raise MalformedDelta(f"{name!r} is encoded in a way that version 1 does not have", param=name)
    expected = _stream_names(manifest)
    for name in sorted(container.rows.keys() ^ expected):
        how = "is missing" if name in expected else "is not in the manifest"
        raise MalformedDelta(f"stream {name!r} {how}", param=name)


def item_of_row(row: str) -> str:
    """What `DeltaFile.itemised` counts a row as."""
    kind = row.rpartition(".")[2]
    return (
        kind if kind in ("positions", "values", "dense") else kind.partition("_")[0].replace("exception", "exceptions")
    )


class StreamsVersion1:
    """`read` for `decode`."""

    def __init__(self, manifest: Manifest, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._bounds = stream_bounds(manifest)
        self._packed: bytes | None = None
        self._dense: dict[str, tuple[int, int]] = {}
        start = 0
        for stream in _dense_streams(manifest):
            end = start + self._bounds[stream]
            self._dense[stream.name] = start, end
            start = end
        self._dense_bytes = start

    def __call__(self, stream: Stream) -> bytes:
        if stream.name in self._dense and not stream.kind.startswith("exception"):
            start, end = self._dense[stream.name]
            return self._unpack_dense()[start:end]
        if stream.kind not in ("scales", "values"):
            return unpack(self._read(f"{stream.name}.{stream.kind}"), self._bounds[stream])
        scale_bytes = self._bounds.get(Stream("scales", stream.name), 0)
        codes = self._bounds[Stream("values", stream.name)]
        data = unpack(self._read(f"{stream.name}.values"), scale_bytes + codes)
        return data[:scale_bytes] if stream.kind == "scales" else data[scale_bytes:]

    def _unpack_dense(self) -> bytes:
        if self._packed is None:
            try:
                self._packed = unpack(self._read(PACKED), self._dense_bytes)
            except MalformedDelta as error:
                raise MalformedDelta(f"{PACKED!r}: {error.message}", param=PACKED) from error
            if len(self._packed) != self._dense_bytes:
                raise MalformedDelta(
                    f"{PACKED} holds {len(self._packed)} bytes where {self._dense_bytes} are declared", param=PACKED
                )
        return self._packed


def _dense_streams(manifest: Manifest) -> list[Stream]:
    """All tensors of the shared stream, in the order they lie in."""
    of = {stream.name: stream for stream in stream_bounds(manifest) if not stream.kind.startswith("exception")}
    return [of[name] for name, entry in manifest.tensors.items() if isinstance(entry, Dense)]


def _stream_names(manifest: Manifest) -> set[str]:
    names: set[str] = set()
    for name, entry in manifest.tensors.items():
        if isinstance(entry, Sparse):
            names |= {f"{name}.positions", f"{name}.values"}
            names |= {f"{name}.own_positions", f"{name}.own_values"} if entry.own else set()
        else:
            names.add(PACKED)
        if entry.exceptions:
            names |= {f"{name}.exception_positions", f"{name}.exception_bits"}
    return names
