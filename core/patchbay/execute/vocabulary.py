"""A larger vocabulary for a while: the rows that one fine-tune appended to the embeddings, behind the backbone's own.

Knows nothing of plans: appended rows have no base, so no coefficient is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence, Sequence
from typing import Any, NamedTuple

import torch

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.errors import InvalidRecipe, WrongShape

SHOWN, SHOWN_LENGTH = 8, 40  # of tokens in a message


class Extended(NamedTuple):
    """A parameter that stands for a longer matrix, and the resident memory that it stood for."""

    parameter: torch.nn.Parameter
    resident: torch.Tensor

    def restore(self) -> None:
        self.parameter.data = self.resident


def appended_rows(deltas: Sequence[Delta]) -> Mapping[str, torch.Tensor]:
    """The rows of the one delta that has any; base name -> [new tokens, width].

    Raises InvalidRecipe where two deltas append rows: their tokens would have the same ids.
    """
    owners = [delta for delta in deltas if delta.appended]
    if len(owners) > 1:
        first, second = (f"{delta.manifest.provenance.finetuned!r} ({_tokens(delta)})" for delta in owners[:2])
        raise InvalidRecipe(
            f"{first} and {second} both add tokens to the vocabulary, which cannot be merged: use one of them",
            param="terms",
        )
    return owners[0].appended if owners else {}


def _tokens(delta: Delta) -> str:
    """What a delta adds, the first few of it."""
    listed = [token.content[:SHOWN_LENGTH] for token in delta.manifest.tokens]
    more = f" and {len(listed) - SHOWN} more" if listed[SHOWN:] else ""
    return ", ".join(map(repr, listed[:SHOWN])) + more if listed else "rows without tokens"


def extend(backbone: Backbone, appended: Mapping[str, torch.Tensor], saved: MutableSequence[Any]) -> None:
    """Puts the rows behind those of the resident matrices, under all tied names; what was there goes into `saved`.

    The resident memory itself stays as it is, for `Backbone.tensor` and the digest. Raises WrongShape, before anything
    is changed, unless every matrix with a row for each token gets as many rows.
    """
    if not appended:
        return
    vocabulary = {spec.name for spec in backbone.specs.values() if spec.is_vocabulary}
    if set(appended) != vocabulary or len({len(rows) for rows in appended.values()}) != 1:
        name = min(set(appended) ^ vocabulary, default=min(appended))
        raise WrongShape(f"the delta does not append as many rows to {name!r} as to other embeddings", param=name)
    for name, rows in appended.items():
        resident, spec = backbone.tensor(name), backbone.specs[name]
        longer = torch.cat([resident, rows.to(resident)])
        for place in (spec.parameter, *spec.tied):
            parameter = backbone.model.get_parameter(place)
            saved.append(Extended(parameter, parameter.data))
            parameter.data = longer
