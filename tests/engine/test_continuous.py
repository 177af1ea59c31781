"""Which architectures answer many at once, and that every one of them answers as the model itself does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.engine.mixed import GREEDY, LONG, RECIPES, Mixed, ask, mixed_causal, prompts

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.continuous import open_runner
from patchbay.engine.engine import Engine
from patchbay.engine.runner import Runner, geometry_of
from patchbay.engine.scheduler import Limits
from patchbay.engine.solo import SoloRunner

Folder = Callable[..., Path]
MANY = ["qwen2", "mistral", "gemma3_text", "phi", "cohere", "gpt_neox"]
MORE = ["qwen3", "gemma", "cohere2", "granite", "olmo", "olmo2", "olmo3", "starcoder2", "stablelm", "smollm3", "glm4"]
MORE += [
    "exaone4",
    "helium",
    "nemotron",
    "gpt_bigcode",
    "biogpt",
    "ernie4_5",
    "modernbert-decoder",
    "ministral",
    "phi3",
]
ALONE = {
    "gemma2": "attention has more to it: softcap",
    "bloom": "its logits differ",
    "gpt_neo": "its logits differ",
    "opt": "Replay",
}
MORE_ALONE = {"gptj": "its logits differ", "codegen": "its logits differ", "xglm": "its logits differ", "mamba": ""}
LENGTHS = (90, 3, 40, 26, 1)  # of prompts; windows are of 24 tokens
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
    **{"short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
}


def no_delta(digest: str) -> Delta:
    raise AssertionError(f"nobody asked for {digest}")


def opened(folder: Path, limits: Limits | None = None) -> Mixed:
    return Mixed(Engine(Backbone.load(folder), no_delta, limits=limits), {}, Backbone.load(folder))


def texts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(4, pico.VOCAB, (length,), generator=generator).tolist()) for length in LENGTHS]


def generated(model: Backbone, prompt: tuple[int, ...]) -> list[int]:
    """What transformers itself answers greedily."""
    model.model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    found = model.model.generate(ids, do_sample=False, max_new_tokens=GREEDY.max_tokens, pad_token_id=0)
    tokens: list[int] = found[0].tolist()
    return tokens[-GREEDY.max_tokens :]


@pytest.mark.parametrize("model_type", [*MANY, *(MORE if LONG else [])])
def test_many_at_once(model_type: str, tmp_path: Path) -> None:
    """Prompts longer than a window are read in pieces, beside answers under way."""
    model = opened(pico.causal(tmp_path, model_type=model_type), Limits(max_step=32))
    with closing(model.engine):
        assert model.engine.language.not_continuous is None
        assert isinstance(model.engine.language.runner, Runner)
        ready = model.ready(None)
        for prompt, answer in zip(texts(), ask(model, [(ready, prompt) for prompt in texts()]), strict=True):
            assert len(answer) == GREEDY.max_tokens
            model.check(None, prompt, answer)


@pytest.mark.parametrize("model_type", ["mistral", *([*MANY, *MORE] if LONG else [])])
def test_recipes_at_once(model_type: str, tmp_path: Path) -> None:
    with mixed_causal(model_type, tmp_path) as model:
        ready = [model.ready(text) for text in RECIPES]
        asked = list(zip(ready, prompts(len(ready), 1, 60), strict=True))
        for text, (_, prompt), answer in zip(RECIPES, asked, ask(model, asked), strict=True):
            model.check(text, prompt, answer)


def test_a_window_is_what_is_tested(tmp_path: Path) -> None:
    """Else the tests above would hold for a model that sees everything."""
    narrow = Backbone.load(pico.causal(tmp_path / "narrow", model_type="mistral"))
    wide = Backbone.load(pico.causal(tmp_path / "wide", model_type="mistral", sliding_window=None))
    assert generated(narrow, texts()[0]) != generated(wide, texts()[0])


@pytest.mark.parametrize("model_type", [*ALONE, *(MORE_ALONE if LONG else [])])
def test_one_after_another(model_type: str, tmp_path: Path) -> None:
    model = opened(pico.causal(tmp_path, model_type=model_type))
    with closing(model.engine):
        language = model.engine.language
        assert language.not_continuous is not None and isinstance(language.runner, SoloRunner)
        assert (ALONE | MORE_ALONE)[model_type] in language.not_continuous
        assert not model.engine.proof.ok and model.engine.proof.reason == language.not_continuous
        answers = ask(model, [(model.ready(None), prompt) for prompt in texts()])
        assert answers == [generated(model.reference, prompt) for prompt in texts()]


def test_a_decoder_of_its_own_runs_alone(model_folder: Folder) -> None:
    runner, reason = open_runner(Backbone.load(model_folder("t5")), 1 << 20)
    assert isinstance(runner, SoloRunner) and reason == "it has an encoder and a decoder"


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE])
def test_rotary_frequencies_of_a_whole_batch(rope: dict[str, object], tmp_path: Path) -> None:
    """A long text beside a short one would change what is answered to the short one."""
    folder = pico.causal(tmp_path, model_type="llama", rope_parameters=rope)
    model = opened(folder)
    with closing(model.engine):
        assert "rotary" in str(model.engine.language.not_continuous)
        asked = [texts()[0], texts()[1]]
        for prompt, answer in zip(asked, ask(model, [(model.ready(None), each) for each in asked]), strict=True):
            model.check(None, prompt, answer)


def test_the_budget_decides_nothing_else(model_folder: Folder) -> None:
    """What is tried at the start needs more room than requests may be given."""
    base = Backbone.load(model_folder("llama"))
    runner, reason = open_runner(base, 10 * geometry_of(base).token_bytes)
    assert reason is None and isinstance(runner, Runner)
    assert runner.cache.max_tokens == 10 and not runner.cache.shelves


def test_a_model_that_is_tried_is_as_it_was(model_folder: Folder) -> None:
    base = Backbone.load(model_folder("llama"))
    before = base.model.config.to_dict()
    runner, _ = open_runner(base, 1 << 20)
    assert base.model.config.to_dict() == before and base.model.config._attn_implementation == "sdpa"
    assert base.compute_digest() == base.resident_digest
