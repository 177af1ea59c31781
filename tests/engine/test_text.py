from __future__ import annotations

import os.path
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import pico
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from patchbay.engine.text import TextStream

HALF = "\N{REPLACEMENT CHARACTER}"
SENTENCES = [
    "the cat runs, the dog sees it",
    "Über Größe naïve café",
    "猫が好き 猫が走る",
    "a 😀 and 👩‍👩‍👧 and 🏳️‍🌈",
    "do n't: it 's 'm",
]
CHUNKS = ["".join(letters) for size in (1, 2, 3) for letters in product("ab", repeat=size)]


def byte_level() -> PreTrainedTokenizerBase:
    """Tokens are pieces of UTF-8: every byte is one, and so are some pairs of halves of characters."""
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        SENTENCES * 3,
        BpeTrainer(
            vocab_size=340, initial_alphabet=alphabet, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def byte_fallback() -> PreTrainedTokenizerBase:
    """Sentencepiece's: words begin with their space, the text with none; what is no word is bytes."""
    words = ["▁the", "▁cat", "▁", "s", "é", *(f"<0x{byte:02X}>" for byte in (0xC3, 0xA9, 0xE2, 0x98, 0x83))]
    inner = Tokenizer(BPE(dict(zip(words, range(len(words)), strict=True)), [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def letters() -> PreTrainedTokenizerBase:
    """Every string of one to three of two letters is a token."""
    inner = Tokenizer(WordLevel({chunk: number for number, chunk in enumerate(CHUNKS)}, unk_token="a"))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.fixture(scope="module")
def bytes_() -> PreTrainedTokenizerBase:
    return byte_level()


@pytest.fixture(scope="module")
def chunks() -> PreTrainedTokenizerBase:
    return letters()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder: Path = pico.tokenizer(tmp_path_factory.mktemp("words"))
    return PreTrainedTokenizerFast.from_pretrained(folder)


def byte_token(tokenizer: PreTrainedTokenizerBase, byte: int) -> int:
    """Byte-level tokenizers write bytes that are no sign of their own as signs from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [other for other in range(256) if other not in plain]
    return int(tokenizer.convert_tokens_to_ids(chr(byte if byte in plain else 256 + others.index(byte))))  # type: ignore[arg-type]


def pushed(tokenizer: PreTrainedTokenizerBase, prompt: list[int], answer: list[int]) -> list[str]:
    stream = TextStream(tokenizer, prompt, ())
    return [*(stream.push(token) for token in answer), stream.finish()]


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: list[int], answer: list[int]) -> str:
    """What the answer adds to the prompt's text: the prompt may end within a character."""
    known = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
    return str(whole[len(os.path.commonprefix([known, whole])) :])


def check(tokenizer: PreTrainedTokenizerBase, prompt: list[int], answer: list[int]) -> None:
    parts = pushed(tokenizer, prompt, answer)
    expected = continuation(tokenizer, prompt, answer)
    assert "".join(parts) == expected
    for part in parts[:-1]:
        assert not part.endswith(HALF), "a character may still become whole"


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_bytes_in_any_order(bytes_: PreTrainedTokenizerBase, data: st.DataObject) -> None:
    tokens = st.integers(0, len(bytes_) - 1)
    check(bytes_, data.draw(st.lists(tokens, max_size=8)), data.draw(st.lists(tokens, max_size=12)))


def test_a_character_around_special_tokens(bytes_: PreTrainedTokenizerBase) -> None:
    check(bytes_, [byte_token(bytes_, 0xC2), *[0] * 6], [byte_token(bytes_, 0xA1)])


@given(st.text(max_size=8), st.text(max_size=12), st.data())
@settings(deadline=None, max_examples=100)
def test_any_text(bytes_: PreTrainedTokenizerBase, before: str, after: str, data: st.DataObject) -> None:
    """A tokenizer's own tokens, cut anywhere, within a character too."""
    tokens = bytes_.encode(before + "é😀" + after, add_special_tokens=False)
    cut = data.draw(st.integers(0, len(tokens)))
    check(bytes_, tokens[:cut], tokens[cut:])


@given(st.lists(st.integers(0, 27), max_size=8), st.lists(st.integers(0, 27), max_size=12))
@settings(deadline=None, max_examples=60)
def test_whole_words(words: PreTrainedTokenizerBase, prompt: list[int], answer: list[int]) -> None:
    check(words, [20, *prompt[:4]], answer)  # a word among the last: only after one there is a space


@pytest.mark.parametrize("text", ["😀", "👩‍👩‍👧", "猫", "é"])
def test_a_character_comes_whole(bytes_: PreTrainedTokenizerBase, text: str) -> None:
    known = bytes_.encode("a", add_special_tokens=False)
    halves = [byte_token(bytes_, byte) for byte in text.encode()]
    parts = pushed(bytes_, known, [*halves, *known])
    assert [part for part in parts if part] == [*text, "a"]


def test_a_character_that_stays_half_is_told_at_the_end(bytes_: PreTrainedTokenizerBase) -> None:
    half = byte_token(bytes_, 0xF0)
    assert pushed(bytes_, [], [half]) == ["", HALF]


def test_a_prompt_that_ends_within_a_character(bytes_: PreTrainedTokenizerBase) -> None:
    tokens = [byte_token(bytes_, byte) for byte in "a😀b".encode()]
    assert pushed(bytes_, tokens[:3], tokens[3:]) == ["", "😀", "b", ""]


def test_special_tokens_are_no_text(bytes_: PreTrainedTokenizerBase) -> None:
    [a] = bytes_.encode("a", add_special_tokens=False)
    assert pushed(bytes_, [a], [0, a, 1, 2, a]) == ["", "a", "", "", "a", ""]


def test_words_keep_their_spaces() -> None:
    tokenizer = byte_fallback()
    the, cat, space, s, accented, *pieces = range(10)
    check(tokenizer, [], [the, cat, s])
    assert pushed(tokenizer, [], [the, cat, s]) == ["the", " cat", "s", ""]
    assert pushed(tokenizer, [the], [cat, space, space, s]) == [" cat", " ", " ", "s", ""]
    assert pushed(tokenizer, [the], [*pieces[:2], s, *pieces[2:], accented]) == ["", "é", "s", "", "", "☃", "é", ""]


def until(text: str, stop: list[str]) -> tuple[str, bool]:
    """Letter by letter: the first stop string to be complete ends it, the longest where two are."""
    for end in range(1, len(text) + 1):
        found = [each for each in stop if text[:end].endswith(each)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(
    st.lists(st.integers(0, len(CHUNKS) - 1), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
@settings(deadline=None, max_examples=200)
def test_stop_strings(chunks: PreTrainedTokenizerBase, answer: list[int], stop: list[str]) -> None:
    """Whatever tokens the text comes in, and nothing that was told is taken back."""
    whole = "".join(CHUNKS[token] for token in answer)
    expected, stopped = until(whole, stop)
    stream = TextStream(chunks, [], tuple(stop))
    told, read = "", ""
    for token in answer:
        told, read = told + stream.push(token), read + CHUNKS[token]
        assert expected.startswith(told)
        assert stream.stopped == until(read, stop)[1], "as soon as it is there"
        if stream.stopped:
            break
        assert len(read) - len(told) < max(map(len, stop), default=1), "no more is held back than may be taken back"
    told += stream.finish()
    assert (told, stream.stopped) == (expected, stopped)
    assert not any(each in told for each in stop)


def test_the_first_to_be_complete_ends_the_text(chunks: PreTrainedTokenizerBase) -> None:
    for answer in (["aba"], ["ab", "a"], ["a", "b", "a"]):
        stream = TextStream(chunks, [], ("aba", "b"))
        told = ""
        for chunk in answer:
            told += "" if stream.stopped else stream.push(CHUNKS.index(chunk))
        assert (told, stream.stopped) == ("a", True), answer


def test_what_only_began_like_a_stop_string_is_text(chunks: PreTrainedTokenizerBase) -> None:
    a, b = CHUNKS.index("a"), CHUNKS.index("b")
    stream = TextStream(chunks, [], ("aab",))
    assert [stream.push(token) for token in (a, a, a, b)] == ["", "", "a", ""]
    assert stream.stopped and stream.finish() == ""
    stream = TextStream(chunks, [], ("aab",))
    assert [stream.push(token) for token in (a, a)] == ["", ""]
    assert (stream.finish(), stream.stopped) == ("aa", False)


def test_a_stop_string_in_the_prompt_stops_nothing(chunks: PreTrainedTokenizerBase) -> None:
    a, b = CHUNKS.index("a"), CHUNKS.index("b")
    stream = TextStream(chunks, [a, b, a], ("ab",))
    assert [stream.push(token) for token in (b, b)] == ["b", "b"]
