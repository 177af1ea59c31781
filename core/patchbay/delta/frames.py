"""zstd frames whose decoded length is decided by the reader, never by the file.

Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import zstandard

from patchbay.errors import MalformedDelta

# The smaller of two: matching rarely helps numbers, and where it does not, level 1 leaves the better byte statistics.
LEVELS = (1, 3)
SEARCHED_LEVELS = (1, 19)  # positions: masks have structure, and below 0.5 % density runs of escapes
# A window larger than this would let a few bytes reserve gigabytes in the decoder.
MAX_WINDOW = 1 << 23
WINDOW_LOG = 22  # of the writer
STEP = 1024
MAGIC = b"\x28\xb5\x2f\xfd"
Bytes = bytes | memoryview


def pack(data: bytes, levels: tuple[int, ...] = LEVELS, *, checksum: bool = False) -> bytes:
    """One zstd frame, the smallest over `levels`, with its content's size and a window that `unpack` accepts."""
    return min((_pack(data, level, checksum) for level in levels), key=len)


def _pack(data: bytes, level: int, checksum: bool) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, window_log=WINDOW_LOG, write_checksum=checksum, write_content_size=True
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def content_size(frame: Bytes, *, checksum: bool = False) -> int:
    """The length that a frame's header declares. Raises MalformedDelta where it does not, or lacks the checksum."""
    if frame[:4] != MAGIC:  # skippable frames decode to nothing and could carry anything
        raise MalformedDelta("it does not start with a zstd frame")
    try:
        declared = zstandard.get_frame_parameters(bytes(frame[:18]))
    except zstandard.ZstdError as error:
        raise MalformedDelta(f"its zstd frame is damaged: {error}") from error
    if declared.content_size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
        raise MalformedDelta("its zstd frame does not say how long its content is")
    if checksum and not declared.has_checksum:
        raise MalformedDelta("its zstd frame has no checksum")
    return int(declared.content_size)


def unpack_exactly(frame: Bytes, num_bytes: int) -> bytes:
    """Decodes the one frame that `frame` is, in a single step: exactly `num_bytes` are reserved and must come out.

    Raises MalformedDelta for damage, trailing data or a frame of another length.
    """
    declared = content_size(frame)
    if declared != num_bytes or not num_bytes:  # there are no empty frames, and the decoder would not look at one
        raise MalformedDelta(f"its zstd frame declares {declared} bytes where {num_bytes} belong")
    decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    try:
        return decoder.decompress(frame, read_across_frames=False, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedDelta(f"its zstd frame is damaged: {error}") from error


def unpack(frame: Bytes, max_bytes: int) -> bytes:
    """Decodes exactly one frame of version 1, streaming, and stops as soon as more than `max_bytes` come out.

    Raises MalformedDelta for damage, trailing data or a frame that decodes to more than the bound.
    """
    out = io.BytesIO()
    decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj(read_across_frames=False)
    view = memoryview(frame)
    if view[:4] != MAGIC:  # skippable frames decode to nothing and could carry anything
        raise MalformedDelta("a stream does not start with a zstd frame")
    try:
        # A block takes 4 bytes at least and decodes to 128 KiB at most: the overshoot of one input step is 32 MiB.
        for start in range(0, len(view), STEP):
            if decoder.eof:
                raise MalformedDelta("a stream goes on after the end of its zstd frame")
            out.write(decoder.decompress(bytes(view[start : start + STEP])))
            if out.tell() > max_bytes:
                raise MalformedDelta(
                    f"a zstd frame decodes to more than the {max_bytes} bytes that its tensor can have"
                )
    except zstandard.ZstdError as error:
        raise MalformedDelta(f"a zstd frame is damaged: {error}") from error
    if not decoder.eof or decoder.unused_data:
        raise MalformedDelta("a zstd frame is cut short or followed by other bytes")
    return out.getvalue()


def shuffle(data: Bytes, width: int) -> bytes:
    """Byte shuffle: all first bytes of the `width`-byte values, then all second bytes, ...; exponents compress well
    then.
    """
    return np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes() if width > 1 else bytes(data)


def unshuffle(data: Bytes, width: int) -> npt.NDArray[np.uint8]:
    rows = np.frombuffer(data, np.uint8).reshape(width, -1)
    values = np.empty((rows.shape[1], width), np.uint8)
    for byte, row in enumerate(rows):  # numpy's own transposition takes three times as long
        values[:, byte] = row
    return values.reshape(-1)


def scaled_half(values: npt.NDArray[np.float32]) -> bytes:
    """Non-negative numbers as one fp32 maximum and fp16 fractions of it: fp16 alone would flush deltas near 1e-7 to
    zero.
    """
    top = np.float32(values.max(initial=0.0))
    fractions = values / top if top > 0 else np.zeros_like(values)
    return bytes(top.astype("<f4").tobytes() + fractions.astype("<f2").tobytes())


def from_scaled_half(data: Bytes) -> npt.NDArray[np.float32]:
    top = np.frombuffer(data[:4], "<f4")[0]
    fractions = np.frombuffer(data[4:], "<f2").astype(np.float32)
    if not (np.isfinite(top) and top >= 0 and (fractions >= 0).all() and (fractions <= 1).all()):
        raise MalformedDelta("a scale is negative, not finite or above its maximum")
    return np.asarray(top * fractions, dtype=np.float32)
