from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import pico
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from patchbay.engine.recipes import Path, Ready
from patchbay.engine.request import Request, SamplingParams, TokenLogprob, Update
from patchbay.engine.sequence import Sequence
from patchbay.errors import Cancelled, InputError

END = pico.SPECIAL.index("</s>")
A, MY, ONE, TWO = (len(pico.SPECIAL) + pico.WORDS.index(word) for word in ("a", "my", "one", "two"))
Make = Callable[..., tuple[Sequence, list[Update]]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
        pico.tokenizer(tmp_path_factory.mktemp("words"))
    )
    return found


@pytest.fixture(scope="module")
def make(tokenizer: PreTrainedTokenizerBase) -> Make:
    """A sequence, and everything that its sink is told."""

    def new(
        prompt: tuple[int, ...] = (A, MY), deadline: float | None = None, **params: object
    ) -> tuple[Sequence, list[Update]]:
        told: list[Update] = []
        ready = Ready("base", Path.BASE, {})
        sampling = SamplingParams(**params)  # type: ignore[arg-type]
        request = Request(4, prompt, sampling, ready, tokenizer, prompt, frozenset({END}), told.append, deadline)
        return Sequence(request), told

    return new


def answer(sequence: Sequence, tokens: list[int]) -> None:
    for token in tokens:
        assert not sequence.is_over
        sequence.accept(TokenLogprob(token, -1.0))


def check(told: list[Update], text: str, tokens: list[int], reason: str) -> None:
    """Nothing is said twice, and the end is the end."""
    assert {update.index for update in told} == {4}
    assert "".join(update.text for update in told) == text
    assert [token for update in told for token in update.tokens] == tokens
    assert [each.token for update in told for each in update.logprobs] == tokens
    assert [update.finish_reason for update in told] == [None] * (len(told) - 1) + [reason]
    assert [update.is_last for update in told] == [False] * (len(told) - 1) + [True]


@pytest.mark.parametrize(
    ("params", "tokens", "text", "reason"),
    [
        ({"max_tokens": 3}, [ONE, TWO, A], " one two a", "length"),
        ({"max_tokens": 1}, [ONE], " one", "length"),
        ({"max_tokens": 9}, [ONE, END], " one", "stop"),
        ({"max_tokens": 2}, [ONE, END], " one", "stop"),
        ({"max_tokens": 3, "ignore_eos": True}, [ONE, END, TWO], " one two", "length"),
        ({"stop_token_ids": (TWO,)}, [ONE, TWO], " one two", "stop"),
        ({"stop_token_ids": (TWO, END), "ignore_eos": True}, [ONE, END], " one", "stop"),
        ({"stop": ("two",)}, [ONE, TWO], " one ", "stop"),
        ({"stop": ("e t", "two")}, [ONE, TWO], " on", "stop"),
        ({"stop": ("one",), "max_tokens": 1}, [ONE], " ", "stop"),
        # What began like a stop string is text in the end.
        ({"stop": ("one my",), "max_tokens": 2}, [ONE, TWO], " one two", "length"),
        ({"stop": ("one my",), "max_tokens": 1}, [ONE], " one", "length"),
        ({"stop": ("one my",)}, [ONE, END], " one", "stop"),
    ],
)
def test_how_it_ends(make: Make, params: dict[str, object], tokens: list[int], text: str, reason: str) -> None:
    sequence, told = make(**params)
    answer(sequence, tokens)
    assert sequence.is_over and not sequence.has_failed
    assert sequence.draws.answer == tokens
    check(told, text, tokens, reason)


def test_a_stop_string_that_is_seen_at_the_end() -> None:
    """A token's text waits where its end may be half a character."""
    inner = Tokenizer(WordLevel({"one\N{REPLACEMENT CHARACTER}": 0}, unk_token="one"))
    told: list[Update] = []
    params, ready = SamplingParams(max_tokens=1, stop=("e",)), Ready("base", Path.BASE, {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    sequence = Sequence(Request(4, (0,), params, ready, tokenizer, (), frozenset(), told.append))
    answer(sequence, [0])
    check(told, "on", [0], "stop")


def test_a_token_is_told_at_once(make: Make) -> None:
    sequence, told = make(max_tokens=3)
    for number, token in enumerate((ONE, TWO, A), 1):
        answer(sequence, [token])
        assert len(told) == number and told[-1].tokens == (token,)


def test_without_an_answer(make: Make) -> None:
    sequence, told = make(max_tokens=0)
    assert sequence.num_reserved == 2
    sequence.end_without_answer()
    assert sequence.is_over
    check(told, "", [], "length")


@pytest.mark.parametrize("prompt", [(A,), (A, MY), (A, MY, ONE)])
@pytest.mark.parametrize("tokens", [[], [ONE], [ONE, TWO]])
def test_the_prompt_s_probabilities_come_first_and_once(make: Make, prompt: tuple[int, ...], tokens: list[int]) -> None:
    """Also those of a prompt of one token, which nothing predicts."""
    sequence, told = make(prompt, max_tokens=len(tokens), prompt_logprobs=0)
    read = [TokenLogprob(token, -0.5) for token in prompt[1:]]
    sequence.read(read[:1])
    sequence.read(read[1:])
    answer(sequence, tokens)
    if not tokens:
        sequence.end_without_answer()
    assert [update.prompt_logprobs for update in told][1:] == [None] * (len(told) - 1)
    assert told[0].prompt_logprobs == (TokenLogprob(prompt[0], None), *read)
    check(told, "".join(f" {word}" for word in ("one", "two")[: len(tokens)]), tokens, "length")


def test_nobody_is_told_of_prompts_unasked(make: Make) -> None:
    sequence, told = make(max_tokens=1)
    answer(sequence, [ONE])
    assert [update.prompt_logprobs for update in told] == [None]


def test_a_failure_is_told_once_and_not_after_the_end(make: Make) -> None:
    sequence, told = make()
    answer(sequence, [ONE])
    first = InputError("first")
    sequence.fail(first)
    sequence.fail(Cancelled("second"))
    assert sequence.is_over and sequence.has_failed
    assert told[1:] == [Update(4, error=first)] and told[1].is_last
    sequence, told = make(max_tokens=1)
    answer(sequence, [ONE])
    sequence.fail(first)
    assert not sequence.has_failed
    check(told, " one", [ONE], "length")


@given(st.integers(1, 12), st.integers(1, 6), st.data())
@settings(deadline=None, max_examples=50)
def test_every_token_is_read_once_and_in_order(make: Make, prompt: int, count: int, data: st.DataObject) -> None:
    sequence, _ = make(tuple(range(4, 4 + prompt)), max_tokens=count, ignore_eos=True)
    read: list[int] = []
    while not sequence.is_over:
        assert sequence.num_tokens == prompt + len(sequence.draws.answer) <= sequence.num_reserved == prompt + count
        assert sequence.is_decoding == (len(read) >= prompt)
        limit = data.draw(st.integers(1, 5))
        tokens = sequence.next_tokens(limit)
        assert len(tokens) == min(limit, sequence.num_tokens - len(read))
        read += tokens
        sequence.computed += len(tokens)
        if sequence.computed == sequence.num_tokens:
            sequence.accept(TokenLogprob(data.draw(st.integers(0, 20)), None))
    assert read == [*range(4, 4 + prompt), *sequence.draws.answer[:-1]]


def test_no_more_tokens_than_asked_for(make: Make) -> None:
    sequence, _ = make((A, MY))
    answer(sequence, [ONE, TWO, ONE])
    found = []
    for computed in range(5):
        sequence.computed = computed
        found.append(list(sequence.next_tokens(2)))
    assert found == [[A, MY], [MY], [ONE, TWO], [TWO, ONE], [ONE]]


def test_deadlines(make: Make) -> None:
    assert not make()[0].is_late
    assert not make(deadline=time.monotonic() + 1000)[0].is_late
    assert make(deadline=time.monotonic() - 1)[0].is_late
