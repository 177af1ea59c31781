from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import pico
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from patchbay.backbone import Backbone
from patchbay.delta.manifest import Token
from patchbay.errors import InputError
from patchbay.models.chat import render
from patchbay.models.inputs import Inputs

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %} my{% endif %}"
)
MESSAGES = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "a dog"}]


@pytest.fixture(scope="module")
def tokenizer(model_folder: Callable[..., Path]) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_folder("llama"))
    return loaded


def test_the_text_ends_where_the_answer_begins(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TEMPLATE
    assert render(tokenizer, MESSAGES) == "<s>the cat</s>a dog</s> my"


def test_tokens_are_those_of_transformers(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = pico.rewrite(model_folder("llama"), tmp_path / "model", lambda tensors: tensors)
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    inputs = Inputs(Backbone.load(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert inputs.chat(MESSAGES) == tuple(wanted)
    added = Token(id=len(tokenizer), content="<new>", special=True)
    assert added.id in inputs.chat([{"role": "user", "content": "the <new> cat"}], [added])


def test_without_a_template(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"no chat template.*chat_template\.jinja"):
        render(tokenizer, MESSAGES)


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ messages + 1 }}", "{% if %}", "{{ 1 / 0 }}"])
def test_a_template_that_fails(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="refuses these messages") as refused:
        render(tokenizer, MESSAGES)
    assert refused.value.param == "messages"


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3), max_size=3))
@settings(max_examples=30, deadline=None)
def test_messages_of_any_shape_are_written_or_refused(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | trim | replace(m['role'], '') }}{% endfor %}"
    try:
        assert isinstance(render(tokenizer, messages), str)
    except InputError as error:
        assert "refuses" in error.message
