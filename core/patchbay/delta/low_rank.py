"""sum_b U_b V_b^T, to the same bits on every machine. Knows no files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
BLOCK = 1 << 16  # entries that stay in a core's cache


def product(factors: Sequence[tuple[Matrix, Matrix]]) -> Matrix:
    """fp32 [rows, columns] from left factors [rows, rank] and right factors [columns, rank].

    Starts from 0 and adds u v^T column by column in order of bands, each product and each sum rounded to fp32: a
    matrix product would add in an order, and with a fused rounding, of the machine's choice.
    """
    rows, columns = len(factors[0][0]), len(factors[0][1])
    total = np.zeros((rows, columns), np.float32)
    terms = [(left[:, k], np.ascontiguousarray(right[:, k])) for left, right in factors for k in range(left.shape[1])]
    step = max(1, BLOCK // max(1, columns))
    scratch = np.empty((step, columns), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is refused with the tensor's name
        for start in range(0, rows, step):
            block = total[start : start + step]
            for left, right in terms:
                term = np.multiply(left[start : start + step, None], right, out=scratch[: len(block)])
                np.add(block, term, out=block)
    return total
