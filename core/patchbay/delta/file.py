"""The delta file: a manifest and frames in one safetensors container. FORMAT.md is its specification.

`DeltaFile.open` reads the header and the manifest only. Knows nothing of stores and networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from patchbay.architecture import TensorSpec
from patchbay.delta.container import Container, strict_json, write_container
from patchbay.delta.decode import decode
from patchbay.delta.delta import Delta
from patchbay.delta.fits import check_fits
from patchbay.delta.frames import LEVELS, SEARCHED_LEVELS, content_size, pack, unpack_exactly
from patchbay.delta.lossless import ReadBase
from patchbay.delta.manifest import FORMAT_VERSION, Manifest
from patchbay.delta.streams import Frame, ReadStream, Stream, plan_frames, stream_bounds, stream_lengths
from patchbay.delta.version1 import StreamsVersion1, check_version1, item_of_row
from patchbay.errors import DeltaError, DeltaTooLarge, MalformedDelta

MAX_MANIFEST = 4 << 20
MANIFEST_ROW = "manifest"
KNOWN_VERSIONS = (1, FORMAT_VERSION)
ITEM_OF_KIND = {
    "positions": "positions",
    "scales": "scales",
    "values": "values",
    "multiples": "values",
    "own_positions": "own",
    "own_values": "own",
    "vector_scales": "vectors",
    "vectors": "vectors",
    "lossless": "lossless",
    "added": "added",
    "copied": "copied",
    "appended": "appended",
    "neuron_energy": "statistics",
    "neuron_cosine": "statistics",
    "exception_positions": "exceptions",
    "exception_bits": "exceptions",
}


@dataclass(frozen=True, slots=True)
class DeltaFile:
    """An opened delta file: its manifest, and where its bytes lie."""

    container: Container
    manifest: Manifest
    frames: tuple[Frame, ...]  # none in version 1

    @classmethod
    def open(cls, path: Path, max_bytes: int | None = None) -> DeltaFile:
        """Header and manifest only. Raises UnsupportedFile, DeltaTooLarge or MalformedDelta."""
        container = Container.open(path, max_bytes)
        if container.text != str(FORMAT_VERSION):
            manifest = _parse_manifest(container.text, 1)
            check_version1(container, manifest)
            return cls(container, manifest, ())
        manifest = _parse_manifest(_read_manifest(container), FORMAT_VERSION)
        frames = tuple(plan_frames(stream_lengths(manifest)))
        _check_rows(container, frames)
        return cls(container, manifest, frames)

    @property
    def path(self) -> Path:
        return self.container.path

    @property
    def header_bytes(self) -> int:
        return self.container.header_bytes

    @property
    def num_bytes(self) -> int:
        return self.header_bytes + sum(self.container.rows.values())

    def itemised(self) -> Mapping[str, int]:
        """Bytes of the file by what they hold; they sum to `num_bytes`. Version 1 keeps norms and heads in `dense`."""
        rows = self.container.rows
        if self.manifest.format_version == 1:
            parts = [(item_of_row(name), size) for name, size in rows.items()]
        else:
            parts = [(ITEM_OF_KIND[frame.kind], rows[frame_row(n)]) for n, frame in enumerate(self.frames)]
            parts.append(("manifest", rows[MANIFEST_ROW]))
        items = {"header": self.header_bytes} | dict.fromkeys(("manifest", *ITEM_OF_KIND.values()), 0)
        for item, size in parts:
            items[item] = items.get(item, 0) + size
        return items

    def load(
        self,
        specs: Mapping[str, TensorSpec],
        fingerprint: str,
        *,
        finite: bool = True,
        read_base: ReadBase | None = None,
    ) -> Delta:
        """Decodes everything once names and shapes are known to be the base's. Errors as in `check_fits`, `decode`."""
        check_fits(self.manifest, specs, fingerprint)
        with safe_open(self.path, framework="np") as handle:

            def read(name: str) -> bytes:
                return bytes(handle.get_tensor(name).tobytes())

            streams: ReadStream
            if self.manifest.format_version == 1:
                streams = StreamsVersion1(self.manifest, read)
            else:
                streams = _FramedStreams(self.frames, read)
            return decode(self.manifest, streams, finite=finite, read_base=read_base)

    def check_payload(self) -> None:
        """Compares the payload's sha256 with the manifest's. Raises MalformedDelta."""
        if self.payload_sha256() != self.manifest.payload_sha256:
            raise MalformedDelta(
                "the payload's sha256 is not the one in the manifest: the file is damaged", param="file"
            )

    def payload_sha256(self) -> str:
        """Of everything between the header and the manifest, which comes last."""
        digest = hashlib.sha256()
        rows = self.container.rows
        left = sum(rows.values()) - (0 if self.manifest.format_version == 1 else rows[MANIFEST_ROW])
        with self.path.open("rb") as file:
            file.seek(self.header_bytes)
            while left and (part := file.read(min(left, 1 << 20))):
                digest.update(part)
                left -= len(part)
        return f"sha256:{digest.hexdigest()}"


def write_delta(path: Path, manifest: Mapping[str, Any], streams: Mapping[Stream, bytes]) -> DeltaFile:
    """Writes a temporary file beside `path`, then renames it. `manifest` lacks only what follows from the streams.

    Raises OSError where the disk is full or the folder cannot be written.
    """
    own = {"format_version": FORMAT_VERSION, "payload_sha256": f"sha256:{'0' * 64}"}
    draft = Manifest.model_validate({**manifest, **own})
    bounds = stream_bounds(draft)
    assert bounds.keys() == streams.keys(), "entries and streams come from one `Streams`"
    frames = plan_frames({stream: len(streams[stream]) for stream in bounds})
    rows = {frame_row(number): _pack_frame(frame, streams) for number, frame in enumerate(frames)}
    payload = hashlib.sha256()
    for name in sorted(rows):
        payload.update(rows[name])
    unused = tuple(bound - len(streams[stream]) for stream, bound in bounds.items())
    full = draft.model_copy(update={"unused": unused, "payload_sha256": f"sha256:{payload.hexdigest()}"})
    rows[MANIFEST_ROW] = pack(full.to_json().encode(), SEARCHED_LEVELS, checksum=True)
    write_container(path, str(FORMAT_VERSION), rows)
    return DeltaFile.open(path)


def read_delta(
    path: Path,
    specs: Mapping[str, TensorSpec],
    fingerprint: str,
    max_bytes: int | None = None,
    *,
    read_base: ReadBase | None = None,
) -> Delta:
    """Every check there is, then the decoded delta: what an upload has to pass. `read_base` gives the base's tensors
    as they are stored, which lossless ones are decoded from.
    """
    file = DeltaFile.open(path, max_bytes)
    try:
        delta = file.load(specs, fingerprint, read_base=read_base)
        file.check_payload()
    except MemoryError as error:
        raise DeltaError("not enough memory to decode the delta", param="file") from error
    return delta


def frame_row(number: int) -> str:
    """The name of a frame's row: sorts before the manifest's, and in order."""
    return f"{number:04d}"


class _FramedStreams:
    """`read` for `decode`: keeps the last frame of each kind, since streams of one kind are asked for in order."""

    def __init__(self, frames: tuple[Frame, ...], read: Callable[[str], bytes]) -> None:
        self._frames, self._read = frames, read
        self._places: dict[Stream, tuple[int, int, int]] = {}
        self._last: dict[str, tuple[int, bytes]] = {}
        for number, frame in enumerate(frames):
            start = 0
            for stream, length in frame.lengths.items():
                self._places[stream] = number, start, start + length
                start += length

    def __call__(self, stream: Stream) -> memoryview:
        if stream not in self._places:
            return memoryview(b"")
        number, start, end = self._places[stream]
        if self._last.get(stream.kind, (None,))[0] != number:
            self._last.pop(stream.kind, None)  # before the next takes memory
            self._last[stream.kind] = number, self._unpack(number)
        return memoryview(self._last[stream.kind][1])[start:end]

    def _unpack(self, number: int) -> bytes:
        row, frame = frame_row(number), self._frames[number]
        try:
            return unpack_exactly(self._read(row), frame.num_bytes)
        except MalformedDelta as error:
            raise MalformedDelta(f"frame {row!r} ({frame.kind}): {error.message}", param=row) from error


def _pack_frame(frame: Frame, streams: Mapping[Stream, bytes]) -> bytes:
    levels = SEARCHED_LEVELS if frame.kind.endswith("positions") else LEVELS
    return pack(b"".join(streams[stream] for stream in frame.lengths), levels)


def _read_manifest(container: Container) -> str:
    """The manifest's text: bounded before it is decoded, and under a checksum, since no hash covers it."""
    if MANIFEST_ROW not in container.rows:
        raise MalformedDelta("a safetensors file, but no delta: it has no manifest", param="file")
    if container.rows[MANIFEST_ROW] > MAX_MANIFEST:
        raise _too_large(container.rows[MANIFEST_ROW])
    frame = container.read(MANIFEST_ROW)
    try:
        size = content_size(frame, checksum=True)
        if size > MAX_MANIFEST:
            raise _too_large(size)
        return unpack_exactly(frame, size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedDelta(f"the manifest is not strict JSON: {error}", param=MANIFEST_ROW) from error
    except MalformedDelta as error:
        raise MalformedDelta(f"the manifest cannot be read: {error.message}", param=MANIFEST_ROW) from error


def _too_large(size: int) -> DeltaTooLarge:
    return DeltaTooLarge(f"the manifest has {size} bytes; at most {MAX_MANIFEST} are accepted", param=MANIFEST_ROW)


def _parse_manifest(text: str, expected: int) -> Manifest:
    """`expected` is the version that the container is of; the manifest has to say the same."""
    try:
        parsed = strict_json(text) if not text.isdecimal() else {"format_version": int(text[:80])}
        version = parsed.get("format_version")
    except (ValueError, RecursionError) as error:
        raise MalformedDelta(f"the manifest is not strict JSON: {error}", param=MANIFEST_ROW) from error
    if type(version) is not int:
        raise MalformedDelta("the manifest lacks format_version, an integer", param="format_version")
    if version not in KNOWN_VERSIONS:
        known = ", ".join(map(str, KNOWN_VERSIONS))
        raise MalformedDelta(
            f"format version {str(version)[:80]} is not known here; known: {known}", param="format_version"
        )
    if version != expected:
        raise MalformedDelta(f"a manifest of version {version} in a file of version {expected}", param="format_version")
    return Manifest.parse(text)


def _check_rows(container: Container, frames: tuple[Frame, ...]) -> None:
    """Exactly the frames that the manifest implies, in order, and the manifest behind them."""
    expected = [*(frame_row(number) for number in range(len(frames))), MANIFEST_ROW]
    for name in sorted(container.rows.keys() ^ set(expected)):
        how = "is missing" if name in expected else "is not in the manifest"
        raise MalformedDelta(f"frame {name!r} {how}", param=name)
    if list(container.rows) != sorted(expected):
        raise MalformedDelta("the frames do not lie in order of their names", param="file")
