"""The text of single tokens, with a tokenizer whose tokens are bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from patchbay.engine.request import TokenLogprob
from patchbay_server.answers.tokens import LEAST, TokenTexts, bytes_of

ALPHABET = sorted(ByteLevel.alphabet())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    model = Tokenizer(BPE({sign: number for number, sign in enumerate(ALPHABET)}, []))
    model.pre_tokenizer = ByteLevel(add_prefix_space=False)
    model.decoder = Decoder()
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>")


@given(text=st.text(max_size=30), cut=st.integers(0, 30))
@settings(max_examples=50, deadline=None)
def test_offsets_are_where_tokens_begin(tokenizer: PreTrainedTokenizerFast, text: str, cut: int) -> None:
    """Of a token that is whole characters the text follows there; half a character is no bytes."""
    before, after = text[:cut], text[cut:]
    texts = TokenTexts(tokenizer, tokenizer(before)["input_ids"], len(before))
    for token in tokenizer(after)["input_ids"]:
        shown = texts.show(token)
        if bytes_of(shown) is None:
            assert "\ufffd" in shown
        else:
            assert text[texts.offset :].startswith(shown) and bytes_of(shown) == list(shown.encode())
        texts.push(token)
    assert texts.offset == len(text) or "\ufffd" in text


def test_special_tokens_have_names_and_take_no_room(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = TokenTexts(tokenizer, ())
    end = tokenizer.eos_token_id
    assert isinstance(end, int) and texts.show(end) == "<end>"
    texts.push(end)
    assert texts.offset == 0


def test_impossible_tokens_have_a_number_that_json_can_write(tokenizer: PreTrainedTokenizerFast) -> None:
    token = tokenizer("a")["input_ids"][0]
    found = TokenLogprob(token, float("-inf"), ((token, -1.0), (token, float("-inf"))))
    assert TokenTexts(tokenizer, ()).top(found) == [("a", -1.0), ("a", LEAST)]
