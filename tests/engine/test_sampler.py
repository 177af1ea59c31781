from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare  # type: ignore[import-untyped]

from patchbay.engine.request import SamplingParams
from patchbay.engine.sampler import Draws, is_sound, logprob_of, sample

VOCAB = 6
LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.1, 0.0, -0.4])
COUNT = 3000
INF, NAN = float("inf"), float("nan")

rows = st.lists(st.floats(-20, 20, width=32), min_size=VOCAB, max_size=VOCAB)
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=8)
TRUNCATED = [
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 100},
    {"top_p": 0.0},
    {"top_p": 0.6},
    {"top_p": 0.95},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"top_k": 3, "top_p": 0.7},
    {"top_k": 4, "top_p": 0.9, "min_p": 0.1},
]


def drawn(count: int, **params: object) -> torch.Tensor:
    """How often each token is the next of one answer, over `count` draws in a row."""
    draws = Draws(SamplingParams(**({"seed": 5} | params)), ())  # type: ignore[arg-type]
    found = [sample(LOGITS[None], [draws])[0].token for _ in range(count)]
    return torch.bincount(torch.tensor(found), minlength=VOCAB)


def left(temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> torch.Tensor:
    """The distribution over `LOGITS` that the parameters leave, token by token: no two are equally likely."""
    p = torch.softmax(LOGITS.double() / temperature, dim=-1)
    kept = [token for token in range(VOCAB) if p[token] >= min_p * p.max()]
    kept.sort(key=lambda token: -float(p[token]))
    kept = kept[: top_k or VOCAB]
    mass = float(p[kept].sum())
    while len(kept) > 1 and float(p[kept[:-1]].sum()) >= top_p * mass:
        kept.pop()
    found = torch.zeros(VOCAB, dtype=torch.float64)
    found[kept] = p[kept] / p[kept].sum()
    return found


def follows(counts: torch.Tensor, expected: torch.Tensor) -> bool:
    """No token that cannot be; the others as often as they should be, at a level of one in ten thousand."""
    if int(counts[expected == 0].sum()):
        return False
    seen, wanted = counts[expected > 0].double(), expected[expected > 0] * float(counts.sum())
    return len(seen) == 1 or float(chisquare(seen.numpy(), wanted.numpy()).pvalue) > 1e-4


def adjusted(logits: Sequence[float], params: SamplingParams, prompt: list[int], answer: list[int]) -> list[float]:
    """Penalties and biases, one token at a time."""
    found = []
    for token, logit in enumerate(logits):
        if token in prompt or token in answer:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        if token in answer:
            logit -= params.presence_penalty + params.frequency_penalty * answer.count(token)
        found.append(logit + params.logit_bias.get(token, 0))
    return found


def greedy(logits: Sequence[float], params: dict[str, object], prompt: Sequence[int], answer: Sequence[int]) -> int:
    draws = Draws(SamplingParams(temperature=0, **params), prompt, list(answer))  # type: ignore[arg-type]
    return sample(torch.tensor([logits]), [draws])[0].token


@given(
    rows,
    tokens,
    tokens,
    st.floats(0.5, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-10, 10), max_size=3),
    st.sampled_from([0.0, 1e-300, 1e-6]),
)
@settings(deadline=None, max_examples=100)
def test_greedy_takes_the_largest_after_penalties_and_biases(
    row: list[float],
    prompt: list[int],
    answer: list[int],
    repetition: float,
    presence: float,
    frequency: float,
    bias: dict[int, float],
    temperature: float,
) -> None:
    params = SamplingParams(
        temperature=temperature,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
    )
    logits = torch.tensor([row])
    [found] = sample(logits, [Draws(params, prompt, answer)])
    expected = adjusted(row, params, prompt, answer)
    assert expected[found.token] >= max(expected) - 1e-4
    assert logits.tolist() == [row], "the caller's logits are not touched"


@pytest.mark.parametrize(
    ("params", "prompt", "answer", "expected"),
    [
        # Logits 2, 1.5, -1: 2 / 1.4 = 1.43 is less than 1.5, 2 / 1.3 = 1.54 is more.
        ({"repetition_penalty": 1.4}, [0], [], 1),
        ({"repetition_penalty": 1.3}, [0], [], 0),
        ({"repetition_penalty": 1.4}, [], [0, 0], 1),
        ({"repetition_penalty": 1.4}, [0, 1], [0, 1], 0),
        # A prompt's tokens have neither of these two.
        ({"presence_penalty": 0.6}, [], [0], 1),
        ({"presence_penalty": 0.4}, [], [0, 0, 0], 0),
        ({"presence_penalty": 2.0}, [0, 0], [], 0),
        ({"presence_penalty": 2.0}, [0, 0], [2], 0),
        ({"frequency_penalty": 0.3}, [], [0], 0),
        ({"frequency_penalty": 0.3}, [], [0, 0], 1),
        ({"frequency_penalty": 0.3}, [], [0, 0, 1], 0),
        ({"frequency_penalty": 2.0}, [0, 0], [], 0),
        ({"frequency_penalty": -1.0}, [], [2, 2, 2, 2], 2),
        ({"presence_penalty": 0.3, "frequency_penalty": 0.3}, [], [0], 1),
        ({"logit_bias": {2: 3.5}}, [], [], 2),
        ({"logit_bias": {2: 2.9}}, [], [], 0),
        ({"logit_bias": {0: -100.0, 1: -100.0}}, [], [], 2),
    ],
)
def test_penalties_by_hand(params: dict[str, object], prompt: list[int], answer: list[int], expected: int) -> None:
    assert greedy([2.0, 1.5, -1.0], params, prompt, answer) == expected


def test_a_negative_logit_is_penalised_downwards() -> None:
    assert greedy([-1.0, -1.5], {"repetition_penalty": 2.0}, [0], []) == 1


@pytest.mark.parametrize("temperature", [0.2, 1.0, 1.7])
def test_tokens_come_as_often_as_softmax_says(temperature: float) -> None:
    assert follows(drawn(COUNT, temperature=temperature), left(temperature))


def test_so_do_the_first_tokens_of_many_seeds() -> None:
    many = [Draws(SamplingParams(seed=seed), ()) for seed in range(COUNT)]
    found = [each.token for each in sample(LOGITS.expand(COUNT, -1), many)]
    assert follows(torch.bincount(torch.tensor(found), minlength=VOCAB), left(1.0))


def test_the_check_sees_a_wrong_temperature() -> None:
    assert not follows(drawn(COUNT, temperature=1.0), left(1.2))


@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("params", TRUNCATED, ids=str)
def test_what_is_left_out_never_comes(params: dict[str, float], temperature: float) -> None:
    expected = left(temperature, **params)  # type: ignore[arg-type]
    assert follows(drawn(800, temperature=temperature, **params), expected)


def test_of_equals_the_first_stay() -> None:
    """Half of the probability is reached with two of four, and needs no third."""
    for params in ({"top_p": 0.5}, {"top_k": 2}):
        draws = Draws(SamplingParams(seed=1, **params), ())  # type: ignore[arg-type]
        assert {sample(torch.zeros(1, 4), [draws])[0].token for _ in range(50)} == {0, 1}


@given(rows, st.integers(0, 8), st.floats(0, 1), st.floats(0, 1), st.floats(1e-4, 5), st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=100)
def test_there_is_always_a_token(
    row: list[float], top_k: int, top_p: float, min_p: float, temperature: float, seed: int
) -> None:
    """Also where most are masked: a token of probability 0 is never drawn."""
    row[1:4] = [-INF] * 3
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    [found] = sample(torch.tensor([row]), [Draws(params, ())])
    assert found.token in {0, 4, 5}


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from([{}, *TRUNCATED])), min_size=1, max_size=5), st.randoms())
@settings(deadline=None, max_examples=30)
def test_a_draw_depends_on_nobody_else(asked: list[tuple[int, dict[str, float]]], order: random.Random) -> None:
    """Each is in some of the batches only, at some place."""
    generator = torch.Generator().manual_seed(len(asked))
    logits = torch.randn(4, VOCAB, generator=generator)
    params = [SamplingParams(seed=seed, **more) for seed, more in asked]  # type: ignore[arg-type]
    alone = [[sample(row[None], [draws])[0].token for row in logits] for draws in (Draws(p, ()) for p in params)]
    together = [Draws(p, ()) for p in params]
    found: list[list[int]] = [[] for _ in params]
    while waiting := [number for number, each in enumerate(found) if len(each) < len(logits)]:
        batch = order.sample(waiting, order.randint(1, len(waiting)))
        rows = torch.stack([logits[len(found[number])] for number in batch])
        for number, token in zip(batch, sample(rows, [together[number] for number in batch]), strict=True):
            found[number].append(token.token)
    assert found == alone


def test_without_a_seed_answers_differ_and_nobody_elses_numbers_change() -> None:
    state = torch.random.get_rng_state()
    assert len({tuple(drawn(20, seed=None).tolist()) for _ in range(6)}) > 1
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_greedy_row_beside_a_drawn_one() -> None:
    params = [SamplingParams(temperature=0), SamplingParams(seed=1), SamplingParams(temperature=0)]
    found = sample(LOGITS.expand(3, -1), [Draws(each, ()) for each in params])
    assert found[0].token == found[2].token == int(LOGITS.argmax())
    assert [each.logprob for each in found] == [None] * 3, "nobody asked"


@pytest.mark.parametrize("count", [0, 1, 3, 50])
def test_logprobs_are_those_of_the_model(count: int) -> None:
    """Neither temperature nor truncation nor penalties change them."""
    params = SamplingParams(logprobs=count, temperature=0.1, top_k=1, repetition_penalty=1.9, logit_bias={2: 100.0})
    [found] = sample(LOGITS[None], [Draws(params, [1, 2], [2])])
    assert found.token == 2
    total = math.log(sum(math.exp(logit) for logit in LOGITS.tolist()))
    assert found.logprob == pytest.approx(-1.0 - total, abs=1e-5)
    likeliest = sorted(range(VOCAB), key=lambda token: -float(LOGITS[token]))[:count]
    assert [token for token, _ in found.top] == likeliest
    assert [logprob for _, logprob in found.top] == pytest.approx([float(LOGITS[t]) - total for t in likeliest])
    assert found == logprob_of(LOGITS, 2, count)


def test_rows_that_nobody_can_sample_from() -> None:
    rows = torch.tensor([[0.0, 1.0], [0.0, NAN], [INF, 0.0], [-INF, 0.0], [-INF, -INF], [-INF, NAN], [INF, -INF]])
    assert is_sound(rows) == [True, False, False, True, False, False, False]


@pytest.mark.parametrize("number", [0, 1, 5])
def test_each_answer_to_a_prompt_has_a_seed_of_its_own(number: int) -> None:
    params = SamplingParams(seed=7, top_k=3)
    assert params.for_choice(number) == SamplingParams(seed=7 + number, top_k=3)
    assert SamplingParams(top_k=3).for_choice(number) == SamplingParams(top_k=3)
