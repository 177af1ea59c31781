from __future__ import annotations

import pytest
from tests.merge.stacks import numbers, stacks_of

from patchbay.errors import InvalidRecipe
from patchbay.merge.parameters import choice, share, shares

STACK = next(iter(stacks_of({"a": numbers(0, 3, 4)}, settings={"density": [0.7, 0.0, 1.0]})))


def test_a_word_out_of_a_list() -> None:
    assert choice({"scope": "global"}, "scope", ("tensor", "global")) == "global"
    with pytest.raises(InvalidRecipe, match="scope is one of tensor, global, not 'layer'") as caught:
        choice({"scope": "layer"}, "scope", ("tensor", "global"))
    assert caught.value.param == "params.scope"


def test_shares_are_read_as_they_were_typed() -> None:
    assert shares(STACK, {"density": 0.2}, "density") == [0.7, 0.0, 1.0]
    assert shares(STACK, {"gamma": 0.29}, "gamma") == [0.29] * 3
    assert share({"select_topk": 0.3}, "select_topk") == 0.3


@pytest.mark.parametrize("value", [-0.1, 1.01, 20])
def test_a_share_is_from_0_to_1(value: float) -> None:
    for read in (lambda: share({"gamma": value}, "gamma"), lambda: shares(STACK, {"gamma": value}, "gamma")):
        with pytest.raises(InvalidRecipe, match="gamma is a share of the entries, from 0 to 1") as caught:
            read()
        assert caught.value.param == "params.gamma"
