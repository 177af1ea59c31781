"""What is merged offline is what the resident model becomes under the same recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.checkpoint import Checkpoint, same_bits
from patchbay.compress import terms as terms_module
from patchbay.compress.merged_model import MergedModel, open_merge
from patchbay.delta import Delta
from patchbay.errors import AmbiguousHead, InputError, InvalidRecipe, NotFound, UnknownMethod, WrongBase
from patchbay.execute.patch import Patcher
from patchbay.merge import METHODS, Recipe, build, parse

ModelFolder = Callable[..., Path]
DTYPES = [torch.float32, torch.bfloat16]
KINDS = ["magnitude", "random", "low_rank", "lossless", "exact"]
OPTIONS: Mapping[str, dict[str, object]] = {
    "magnitude": {"density": 0.2},
    "random": {"method": "random", "density": 0.3, "values": "sign"},
    "low_rank": {"method": "low_rank", "density": 0.3},
    "lossless": {"method": "lossless"},
    "exact": {"density": 0.2, "exact": True},
}


@pytest.fixture(scope="module")
def files(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Path]]:
    """`files("llama", dtype)`: a delta of each kind, and `whole`, a fine-tuned folder."""
    made: dict[tuple[str, torch.dtype], dict[str, Path]] = {}

    def make(name: str, dtype: torch.dtype) -> dict[str, Path]:
        if (name, dtype) not in made:
            folder, base = tmp_path_factory.mktemp("terms"), model_folder(name, dtype=dtype)
            made[name, dtype] = {
                kind.replace("_", "-"): pico.delta_file(
                    base, finetune_folder(name, seed=seed, dtype=dtype), folder / kind, **OPTIONS[kind]
                )
                for seed, kind in enumerate(KINDS, 1)
            } | {"whole": finetune_folder(name, seed=9, dtype=dtype)}
        return made[name, dtype]

    return make


@pytest.fixture(params=[0, 1 << 28], ids=["one by one", "at once"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms_module, "AT_ONCE", request.param)


def delta_of(model: MergedModel, number: int) -> Delta:
    """A term in memory, as a server would hold it."""
    term = model.terms[number]
    parts = [term.source.read(name) for name in sorted(term.source.names)]
    fields = ("matrices", "vectors", "exceptions", "neurons", "factors")
    merged = {field: {k: v for part in parts for k, v in getattr(part, field).items()} for field in fields}
    return Delta(term.source.manifest, added={}, copied=term.source.copied, **merged)


def resident(model: MergedModel, folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the resident base, patched with the recipe."""
    backbone = Backbone.load(folder, device="cpu")
    deltas = [delta_of(model, number) for number in range(len(model.terms))]
    merged = build(model.canonical, deltas, backbone)
    with Patcher(backbone).patched(merged.plan, merged.deltas(deltas)):
        return {name: backbone.tensor(name).clone() for name in backbone.specs}


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() >= expected.keys()
    for name, tensor in expected.items():
        assert same_bits(found[name], tensor), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "text",
    [
        "exact",
        "lossless",
        "0.5*magnitude",
        "0.6*magnitude + 0.4*random - 0.3*low-rank",
        "0.5*magnitude + 0.5*whole",
        "linear(magnitude, 2*low-rank, lossless, whole, exact; scale=0.7)",
    ],
)
@pytest.mark.usefixtures("at_once")
def test_sums_are_the_patched_model_bit_for_bit(
    model_folder: ModelFolder, files: Callable[..., dict[str, Path]], dtype: torch.dtype, text: str
) -> None:
    base = model_folder("llama", dtype=dtype)
    model = open_merge(base, parse(text), files("llama", dtype))
    assert_same(dict(model.tensors()), resident(model, base))


@pytest.mark.parametrize("name", pico.MAKERS)
def test_every_layout(model_folder: ModelFolder, files: Callable[..., dict[str, Path]], name: str) -> None:
    base = model_folder(name)
    model = open_merge(base, parse("0.6*magnitude + 0.4*whole"), files(name, torch.float32))
    found = dict(model.tensors())
    assert_same(found, resident(model, base))
    assert found.keys() == Checkpoint.open(base).tensors.keys()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_the_patched_model(
    model_folder: ModelFolder, files: Callable[..., dict[str, Path]], method: str
) -> None:
    base = model_folder("llama")
    weight = "0.7*" if METHODS[method].is_weighted else ""
    recipe = parse(f"{method}(magnitude, {weight}whole; scale=0.8)")
    model = open_merge(base, recipe, files("llama", torch.float32))
    expected, found = resident(model, base), dict(model.tensors())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)
    before = Checkpoint.open(base)
    assert any(not torch.equal(found[name], before.read(name)) for name in found)


def test_terms_with_rules_of_their_own(model_folder: ModelFolder, files: Callable[..., dict[str, Path]]) -> None:
    base = model_folder("llama")
    rules = [{"filter": "mlp", "value": 0.0}, {"value": 1.0}]
    terms = [{"delta": "exact", "params": {"weight": rules}}]
    model = open_merge(base, Recipe.model_validate({"terms": terms}), files("llama", torch.float32))
    assert_same(dict(model.tensors()), resident(model, base))
    changed = dict(model.changed())
    assert same_bits(
        changed["model.layers.0.mlp.up_proj.weight"], Checkpoint.open(base).read("model.layers.0.mlp.up_proj.weight")
    )
    assert '"weight"' in model.written


def test_one_rounding_to_another_dtype(model_folder: ModelFolder, files: Callable[..., dict[str, Path]]) -> None:
    base, paths = model_folder("llama"), files("llama", torch.float32)
    full = dict(open_merge(base, parse("0.5*magnitude"), paths).tensors())
    for dtype in (torch.bfloat16, torch.float16):
        model = open_merge(base, parse("0.5*magnitude"), paths, dtype=dtype)
        assert_same(dict(model.tensors()), {name: tensor.to(dtype) for name, tensor in full.items()})
        assert model.config["dtype"] == str(dtype).removeprefix("torch.")


def test_numbers_out_of_range_are_refused(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("llama")
    tuned = pico.rewrite(base, tmp_path / "tuned", lambda tensors: {n: t + 60_000 for n, t in tensors.items()})
    model = open_merge(base, parse("2*far"), {"far": tuned}, dtype=torch.float16)
    with pytest.raises(InvalidRecipe, match="range of F16"):
        list(model.tensors())
    unchanged = pico.rewrite(base, tmp_path / "large", lambda tensors: {n: t + 1e5 for n, t in tensors.items()})
    model = open_merge(unchanged, parse("same"), {"same": unchanged}, dtype=torch.float16)
    with pytest.raises(InvalidRecipe, match="range of F16"):
        list(model.tensors())


def test_damaged_fine_tune_is_refused(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("llama")
    tuned = pico.rewrite(base, tmp_path / "tuned", lambda tensors: {n: t * torch.nan for n, t in tensors.items()})
    with pytest.raises(Exception, match="NaN"):
        list(open_merge(base, parse("0.5*bad"), {"bad": tuned}).tensors())


def test_heads(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> None:
    base, one = model_folder("bert_encoder"), model_folder("bert_classifier", seed=5)
    two = model_folder("bert_classifier", seed=6, labels=("x", "y"))
    paths = {"one": one, "two": pico.delta_file(base, two, tmp_path / "two"), "plain": finetune_folder("bert_encoder")}
    with pytest.raises(AmbiguousHead, match="one, two"):
        open_merge(base, parse("one + two"), paths)
    for recipe, head in ((parse("one + two"), "two"), (parse("linear(one, two; head=two)"), None)):
        model = open_merge(base, recipe, paths, head=head)
        assert torch.equal(dict(model.tensors())["classifier.weight"], pico.weights(two)["classifier.weight"])
        assert list(model.config["id2label"].values()) == ["x", "y"]
    alone = dict(open_merge(base, parse("one + plain"), paths).tensors())
    assert torch.equal(alone["classifier.weight"], pico.weights(one)["classifier.weight"])
    assert "classifier.weight" not in dict(open_merge(base, parse("plain"), paths).tensors())
    with pytest.raises(AmbiguousHead, match="brings no"):
        open_merge(base, parse("one + plain"), paths, head="plain")
    with pytest.raises(AmbiguousHead, match="not among"):
        open_merge(base, parse("plain"), paths, head="one")


def test_a_head_in_place_of_the_bases(model_folder: ModelFolder, tmp_path: Path) -> None:
    base, tuned = model_folder("bert_classifier"), model_folder("bert_classifier", seed=6, labels=("x", "y"))
    model = open_merge(base, parse("a"), {"a": tuned})
    found = list(model.tensors())
    assert len(found) == len(dict(found)) == len(model.planned())
    assert torch.equal(dict(found)["classifier.weight"], pico.weights(tuned)["classifier.weight"])


def test_entries_that_nothing_keeps_have_the_bases_bits(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    """-0.0 plus nothing is not 0.0."""

    def plant(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for tensor in tensors.values():
            tensor.view(-1)[2:40] = -0.0
        return tensors

    base = pico.rewrite(model_folder("llama"), tmp_path / "base", plant)
    tuned = pico.rewrite(finetune_folder("llama"), tmp_path / "tuned", plant)
    paths = {seed: pico.delta_file(base, tuned, tmp_path / seed, method="random", seed=int(seed)) for seed in "12"}
    for text in ("0.5*1", "0.5*1 + 0.5*2"):
        model = open_merge(base, parse(text), paths)
        assert_same(dict(model.tensors()), resident(model, base))


def test_larger_vocabulary(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("llama")
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    paths = {"large": pico.grow(base, tmp_path / "1", pico.VOCAB + 3), "plain": finetune_folder("llama")}
    model = open_merge(base, parse("large + 0.5*plain"), paths)
    found, name = dict(model.tensors()), "model.embed_tokens.weight"
    assert torch.equal(found[name][pico.VOCAB :], pico.weights(paths["large"])[name][pico.VOCAB :])
    assert model.config["vocab_size"] == pico.VOCAB + 3
    assert {plan.name: plan.shape for plan in model.planned()} == {n: tuple(t.shape) for n, t in found.items()}
    other = pico.grow(base, tmp_path / "2", pico.VOCAB + 4)
    with pytest.raises(InvalidRecipe, match="larger vocabulary"):
        open_merge(base, parse("large + other"), paths | {"other": other})


def test_copies_of_tied_tensors(model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path) -> None:
    def copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    base = pico.rewrite(model_folder("llama"), tmp_path / "base", copy)
    tuned = pico.rewrite(finetune_folder("llama"), tmp_path / "tuned", copy)
    found = dict(open_merge(base, parse("0.5*a"), {"a": tuned}).tensors())
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    assert not torch.equal(found["lm_head.weight"], pico.weights(base)["lm_head.weight"])


def test_what_is_refused(model_folder: ModelFolder, files: Callable[..., dict[str, Path]], tmp_path: Path) -> None:
    base, paths = model_folder("llama"), files("llama", torch.float32)
    with pytest.raises(NotFound, match="magnitud"):
        open_merge(base, parse("magnitud"), paths)
    with pytest.raises(InputError, match="no delta file"):
        open_merge(base, parse("a"), {"a": tmp_path / "nothing"})
    with pytest.raises(UnknownMethod):
        open_merge(base, parse("nosuch(exact)"), paths)
    with pytest.raises(InvalidRecipe, match="same delta"):
        open_merge(base, parse("a + b"), {"a": paths["exact"], "b": paths["exact"]})
    with pytest.raises(WrongBase):
        open_merge(model_folder("llama", seed=3), parse("exact"), paths)
