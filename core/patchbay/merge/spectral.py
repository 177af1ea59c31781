"""Merging by singular vectors: TSV-M, Iso-C and Iso-CTS. Every matrix by itself; nothing is known of the others.

Where the sum of the terms, or a term, has not full rank, the published code fills up with singular vectors that are
arbitrary: rounding chooses them. Here directions of no size stay out, so that zero stays zero and low rank low.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from patchbay.merge.by_matrix import by_matrix
from patchbay.merge.parameters import share
from patchbay.merge.singular import Decomposed, decompose, orthogonalised, side_by_side
from patchbay.merge.stack import Params, Stacks


def tsv_m(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """TSV-Merge (Gargiulo et al., arXiv 2412.00081): all terms' leading singular vectors, whitened together.

    Of T matrices [m, n] the largest min(m, n) // T singular triplets each (one at least), side by side:
    U S V^T -> orthogonalised(U) S orthogonalised(V)^T. One term with weight 1 comes out as it is.
    """
    return by_matrix(stacks, _tsv_m)


def _tsv_m(terms: torch.Tensor) -> torch.Tensor:
    rank = max(1, _short_side(terms) // len(terms))
    parts = side_by_side([decompose(term, rank) for term in terms])
    return _with_orthogonal_sides(parts, parts.sizes)


def iso_c(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """Iso-C (Marczak et al., arXiv 2502.04959): the sum of the terms with all singular values set to their mean.

    sum_t w_t tau_t = U S V^T -> mean(S) U V^T; the mean is over min(m, n) values, zeros among them.
    """
    return by_matrix(stacks, _iso_c)


def _iso_c(terms: torch.Tensor) -> torch.Tensor:
    total = decompose(terms.sum(0))
    return total.left @ total.right.T * (total.sizes.sum() / _short_side(terms))


def iso_cts(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """Iso-CTS (Marczak et al., arXiv 2502.04959): the leading directions of the sum, and each term's own beside them.

    `common` is the share of min(m, n) directions that the sum's leading ones have; the rest is dealt out evenly to the
    terms, for what they are outside of the common left singular vectors. All of them are orthogonalised and take
    the mean of all their singular values. Raises InvalidRecipe where `common` is not from 0 to 1.
    """
    common = share(params, "common")
    return by_matrix(stacks, lambda terms: _iso_cts(terms, common))


def _iso_cts(terms: torch.Tensor, common_share: float) -> torch.Tensor:
    side = _short_side(terms)
    own = _directions_a_term(side, common_share, len(terms))
    common = decompose(terms.sum(0), side - own * len(terms))
    outside = [decompose(term - common.left @ (common.left.T @ term), own, float(term.norm())) for term in terms]
    parts = side_by_side([*outside, common])
    return _with_orthogonal_sides(parts, (parts.sizes.sum() / side).expand(len(parts.sizes)))


def _directions_a_term(side: int, common_share: float, count: int) -> int:
    """Rounded as in the reference, but never more than there are."""
    return min(round((side - int(side * common_share)) / count), side // count)


def _with_orthogonal_sides(parts: Decomposed, sizes: torch.Tensor) -> torch.Tensor:
    return Decomposed(orthogonalised(parts.left), sizes, orthogonalised(parts.right)).to_dense()


def _short_side(terms: torch.Tensor) -> int:
    return min(terms.shape[1:])
