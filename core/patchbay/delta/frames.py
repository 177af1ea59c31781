"""zstd frames whose decoded length is decided by the reader, never by the file.

Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import zstandard

from patchbay.errors import MalformedDelta

LEVEL = 3
# A window larger than this would let a few bytes reserve gigabytes in the decoder.
MAX_WINDOW = 1 << 23
STEP = 1024
MAGIC = b"\x28\xb5\x2f\xfd"
Bytes = bytes | memoryview


def pack(data: bytes, level: int = LEVEL) -> bytes:
    """One zstd frame without checksum (the payload has a sha256) and with a window that `unpack` accepts."""
    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=min(22, MAX_WINDOW.bit_length() - 1))
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def unpack(frame: Bytes, max_bytes: int) -> bytes:
    """Decodes exactly one frame, streaming, and stops as soon as more than `max_bytes` come out.

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


def shuffle(data: bytes, width: int) -> bytes:
    """Byte shuffle: all first bytes of the `width`-byte values, then all second bytes, ...; exponents compress well
    then.
    """
    return np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes() if width > 1 else data


def unshuffle(data: bytes, width: int) -> bytes:
    if width == 1:
        return data
    rows: npt.NDArray[np.uint8] = np.frombuffer(data, np.uint8).reshape(width, -1)
    return bytes(rows.T.tobytes())


def scaled_half(values: npt.NDArray[np.float32]) -> bytes:
    """Non-negative numbers as one fp32 maximum and fp16 fractions of it: fp16 alone would flush deltas near 1e-7 to
    zero.
    """
    top = np.float32(values.max(initial=0.0))
    fractions = values / top if top > 0 else np.zeros_like(values)
    return bytes(top.astype("<f4").tobytes() + fractions.astype("<f2").tobytes())


def from_scaled_half(data: bytes) -> npt.NDArray[np.float32]:
    top = np.frombuffer(data[:4], "<f4")[0]
    fractions = np.frombuffer(data[4:], "<f2").astype(np.float32)
    if not (np.isfinite(top) and top >= 0 and (fractions >= 0).all() and (fractions <= 1).all()):
        raise MalformedDelta("a scale is negative, not finite or above its maximum")
    return np.asarray(top * fractions, dtype=np.float32)
