from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.stacks import differences, merged, numbers, stacks_of

from patchbay.errors import InvalidRecipe


def by_definition(terms: torch.Tensor, task: int) -> torch.Tensor:
    """As the authors' code, of one flat vector a task."""
    flag = (terms.mean(0) > 0) * 2 - 1
    largest = torch.zeros_like(terms[0])
    for term in terms:
        largest = torch.maximum(largest, (((term * flag) > 0) * term).abs())
    own = largest * flag * ((terms[task] * flag) > 0)
    return own * terms[task].abs().mean() / own.abs().mean() if own.any() else own


def test_by_hand() -> None:
    """Unified: (3, 4, -5). The second term has the sign of the last two, and 5 of the 9 are its own size."""
    terms = {"a": [[3.0, 4.0, 1.0], [-1.0, 2.0, -5.0]]}
    assert merged("emr", stacks_of(terms), task=0)["a"].tolist() == pytest.approx([24 / 7, 32 / 7, 0.0])
    assert merged("emr", stacks_of(terms), task=1)["a"].tolist() == pytest.approx([0.0, 32 / 9, -40 / 9])


@given(differences(), st.data())
def test_of_all_tensors_together(terms: torch.Tensor, data: st.DataObject) -> None:
    task, cut = data.draw(st.integers(0, len(terms) - 1)), data.draw(st.integers(0, terms.shape[1]))
    parts = {"a": terms[:, :cut], "b": terms[:, cut:]}
    found = merged("emr", stacks_of({name: part for name, part in parts.items() if part.numel()}), task=task)
    assert torch.cat(list(found.values())).tolist() == pytest.approx(by_definition(terms, task).tolist())


@given(differences(max_terms=1))
def test_one_term_comes_out_as_it_is(terms: torch.Tensor) -> None:
    assert torch.equal(merged("emr", stacks_of({"a": terms}))["a"], terms[0])


@given(differences())
def test_it_keeps_the_task_s_l1_norm(terms: torch.Tensor) -> None:
    found = merged("emr", stacks_of({"a": terms}, [0.5] * len(terms)))["a"]
    if found.any():
        assert float(found.abs().sum()) == pytest.approx(float(terms[0].abs().sum()) / 2)


@pytest.mark.parametrize("task", [-1, 2])
def test_a_task_that_is_not_there(task: int) -> None:
    with pytest.raises(InvalidRecipe, match="task is 0 to 1 here") as caught:
        merged("emr", stacks_of({"a": numbers(1, 2, 3)}), task=task)
    assert caught.value.param == "params.task"
