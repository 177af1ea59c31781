"""The C code of rows.c and linear.c as functions, where the package's build made it; elsewhere torch does what it does.

Knows nothing of how entries are laid out, of tensors and of layers.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).with_name("_kernels.so")


class Matrix(ctypes.Structure):
    """As in rows.c."""

    _fields_ = [
        ("slots", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("halves", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("first", ctypes.c_int32),
        ("count", ctypes.c_int32),
    ]


class Call(ctypes.Structure):
    """As in rows.c."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("matrices", ctypes.POINTER(Matrix)),
        ("rows", ctypes.c_void_p),
        ("coefficients", ctypes.c_void_p),
        ("entries", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("num_matrices", ctypes.c_int32),
        ("tokens", ctypes.c_int32),
        ("x_is_bf16", ctypes.c_int32),
        ("y_is_bf16", ctypes.c_int32),
    ]


def _load() -> ctypes.CDLL | None:
    """Torch's OpenMP is the one that it runs with: it is linked to none, and torch's is there for all to find."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    library.patchbay_add_rows.argtypes = [ctypes.POINTER(Call), ctypes.c_int]
    library.patchbay_add_rows.restype = ctypes.c_int
    numbers, pointer = ctypes.c_int64, ctypes.c_void_p
    library.patchbay_add_entries.argtypes = [ctypes.POINTER(Matrix), pointer, numbers, numbers, numbers, pointer]
    library.patchbay_add_entries.restype = None
    library.patchbay_linear.argtypes = [pointer] * 4 + [numbers] * 3 + [ctypes.c_int]
    library.patchbay_linear.restype = None
    library.patchbay_has_bf16.restype = ctypes.c_int
    return library


_library = _load()


def is_there() -> bool:
    return _library is not None


@cache
def has_bf16() -> bool:
    """Whether the processor multiplies bf16 by itself, as `linear` needs it."""
    return _library is not None and bool(_library.patchbay_has_bf16())


def linear(x: int, weight: int, bias: int | None, y: int, sizes: tuple[int, int, int], threads: int) -> None:
    """y = x W^T + b, all by their addresses, in bf16 and without gaps; `sizes`: rows of x, inputs, outputs."""
    assert _library is not None
    _library.patchbay_linear(x, weight, bias, y, *sizes, threads)


def add_rows(call: Call, threads: int) -> None:
    """Raises MemoryError, and then has changed nothing."""
    assert _library is not None
    if _library.patchbay_add_rows(ctypes.byref(call), threads):
        raise MemoryError("there is no memory for the tables of a product")


def add_entries(matrix: Matrix, coefficients: int, width: int, inputs: int, outputs: int, dense: int) -> None:
    """`coefficients` and `dense` are addresses of fp32 numbers: [width], [outputs, inputs]."""
    assert _library is not None
    _library.patchbay_add_entries(ctypes.byref(matrix), coefficients, width, inputs, outputs, dense)
