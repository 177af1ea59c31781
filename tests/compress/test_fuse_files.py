"""Fused files against the formula on what their sources decode to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from tests import pico
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from patchbay.backbone import Backbone
from patchbay.compress.calibration import Calibration, Judge
from patchbay.compress.fuse_files import fuse_files
from patchbay.compress.reconstruct import reconstruct
from patchbay.delta import Delta, DeltaFile, read_delta
from patchbay.errors import InvalidRecipe, WrongBase

ModelFolder = Callable[..., Path]
TEXTS = ("the cat runs", "a big dog eats one fox", "my owl likes good film", "bad", "red green two is not small")
INPUTS = Calibration(TEXTS)
LAMBDAS = (1.5, -0.5)


@pytest.fixture(scope="module")
def base(model_folder: ModelFolder) -> Path:
    return model_folder("bert_classifier")


@pytest.fixture(scope="module")
def files(base: Path, finetune_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("deltas")
    tuned = {"a": finetune_folder("bert_classifier", 1, 0.05), "b": finetune_folder("bert_classifier", 2, 0.05)}
    return {name: pico.delta_file(base, model, folder / name, density=0.3) for name, model in tuned.items()}


def decoded(base: Path, file: Path) -> Delta:
    backbone = Backbone.load(base, device="cpu")
    return read_delta(file, backbone.specs, backbone.fingerprint)


def dense(delta: Delta) -> dict[str, torch.Tensor]:
    return {name: delta.difference(name) for name in {*delta.matrices, *delta.vectors, *delta.factors}}


def by_formula(base: Path, files: Mapping[str, Path], lambdas: tuple[float, ...]) -> dict[str, torch.Tensor]:
    tasks = [dense(decoded(base, file)) for file in files.values()]
    sums, counts = {}, {}
    for name in {name for task in tasks for name in task}:
        pairs = [(number, task[name].double()) for number, task in zip(lambdas, tasks, strict=True) if name in task]
        sums[name] = sum(number * tau for number, tau in pairs)
        counts[name] = sum((tau != 0).double() for _, tau in pairs)
    return {name: sums[name] / counts[name].clamp(min=1) for name in sums}


def test_the_file_holds_the_formula(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "fused"
    report = fuse_files(base, files, out, lambdas=LAMBDAS)
    found, expected = dense(decoded(base, out)), by_formula(base, files, LAMBDAS)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=2**-8, atol=1e-12)
    assert report.lambdas == {"a": 1.5, "b": -0.5} and (report.evaluations, report.score) == (0, None)
    assert report.num_bytes == out.stat().st_size
    matrices = decoded(base, out).matrices.values()
    kept, total = sum(len(m.positions) for m in matrices), sum(m.to_dense().numel() for m in matrices)
    assert report.density == pytest.approx(kept / total)
    assert 0.3 < report.density < 0.6


def test_the_manifest_says_what_was_fused(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    fuse_files(base, files, tmp_path / "fused")
    manifest, source = DeltaFile.open(tmp_path / "fused").manifest, DeltaFile.open(files["a"]).manifest
    digests = [f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files.values()]
    assert manifest.compression.method == "fusion"
    assert manifest.compression.params == {
        "lambda1": 1.0,
        "name1": "a",
        "source1": digests[0],
        "lambda2": 1.0,
        "name2": "b",
        "source2": digests[1],
    }
    assert (manifest.base, manifest.labels, manifest.config) == (source.base, source.labels, source.config)
    assert manifest.provenance.finetuned == "fusion of a, b"
    assert manifest.provenance.original_bytes == source.provenance.original_bytes
    assert 0 < manifest.statistics.relative_error < 2**-8


def test_it_is_an_ordinary_delta(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    fuse_files(base, files, tmp_path / "fused")
    reconstruct(tmp_path / "fused", base, tmp_path / "model")
    found, before, added = pico.weights(tmp_path / "model"), pico.weights(base), by_formula(base, files, (1.0, 1.0))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (before[name] + added.get(name, 0)).float(), rtol=1e-4, atol=1e-3)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")


def test_one_task_with_lambda_1_is_its_delta(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    fuse_files(base, {"a": files["a"]}, tmp_path / "fused")
    source, found = decoded(base, files["a"]), decoded(base, tmp_path / "fused")
    assert all(torch.equal(found.matrices[name].positions, rows.positions) for name, rows in source.matrices.items())
    for name, tensor in dense(source).items():
        torch.testing.assert_close(dense(found)[name], tensor, rtol=2**-8, atol=0)


def test_the_search_scores_every_task_against_its_own_delta(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    report = fuse_files(
        base,
        files,
        tmp_path / "fused",
        calibrations={"a": INPUTS, "b": Calibration(TEXTS[:3])},
        evaluations=12,
        on_progress=lambda *step: steps.append(step),
    )
    backbone = Backbone.load(base, device="cpu")
    judges = [
        Judge(backbone, decoded(base, files["a"]), INPUTS),
        Judge(backbone, decoded(base, files["b"]), Calibration(TEXTS[:3])),
    ]

    def score(file: Path) -> float:
        return sum(judge.score(decoded(base, file)) for judge in judges) / 2

    fuse_files(base, files, tmp_path / "plain")
    assert report.score == pytest.approx(score(tmp_path / "fused"), rel=0.05)  # before rounding
    assert report.score > score(tmp_path / "plain")
    assert report.evaluations == len(steps) == 12 and [step[:2] for step in steps] == [(n, 12) for n in range(1, 13)]
    assert steps[-1][2] == f"search evaluation 12, best score {report.score:.4g}"
    params = DeltaFile.open(tmp_path / "fused").manifest.compression.params
    assert [params["lambda1"], params["lambda2"]] == list(report.lambdas.values()) != [1.0, 1.0]


@pytest.fixture(scope="module")
def headed(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tasks of a plain encoder, with a head of their own each."""
    base, folder = model_folder("bert_encoder"), tmp_path_factory.mktemp("headed")
    tuned = {
        "animals": model_folder("bert_classifier", seed=5),
        "moods": model_folder("bert_classifier", seed=6, labels=("good", "bad")),
    }
    return {name: pico.delta_file(base, model, folder / name, density=0.3) for name, model in tuned.items()}


def test_a_head_is_taken_along_where_asked(model_folder: ModelFolder, headed: dict[str, Path], tmp_path: Path) -> None:
    base = model_folder("bert_encoder")
    fuse_files(base, headed, tmp_path / "plain")
    plain = decoded(base, tmp_path / "plain")
    assert (plain.added, plain.labels, plain.manifest.config, plain.manifest.prefix) == ({}, None, {}, "")
    reconstruct(tmp_path / "plain", base, tmp_path / "encoder")
    Backbone.load(tmp_path / "encoder", device="cpu")
    fuse_files(base, headed, tmp_path / "fused", head="moods")
    fused, source = decoded(base, tmp_path / "fused"), decoded(base, headed["moods"])
    assert fused.labels == ("good", "bad")
    assert all(torch.equal(fused.added[name], tensor) for name, tensor in source.added.items())
    reconstruct(tmp_path / "fused", base, tmp_path / "model")
    assert Backbone.load(tmp_path / "model", device="cpu").labels == ("good", "bad")


def test_heads_of_their_own_are_searched_with(
    model_folder: ModelFolder, headed: dict[str, Path], tmp_path: Path
) -> None:
    base = model_folder("bert_encoder")
    calibrations = dict.fromkeys(headed, INPUTS)
    report = fuse_files(base, headed, tmp_path / "fused", calibrations=calibrations, evaluations=3, head="animals")
    assert report.score is not None and report.score < 0


def test_a_head_replaces_the_bases(
    base: Path, files: dict[str, Path], model_folder: ModelFolder, tmp_path: Path
) -> None:
    """One task changed the base's head, the other has new classes: the file holds the new head alone."""
    other = model_folder("bert_classifier", seed=6, labels=("good", "bad"))
    moods = pico.delta_file(base, other, tmp_path / "moods", density=0.3)
    fuse_files(base, {"a": files["a"], "moods": moods}, tmp_path / "fused", head="moods")
    fused = decoded(base, tmp_path / "fused")
    assert set(fused.added) == {"classifier.weight", "classifier.bias"} and not set(fused.added) & set(dense(fused))


def test_what_the_sources_do_not_share_is_the_bases(
    base: Path, files: dict[str, Path], finetune_folder: ModelFolder, model_folder: ModelFolder, tmp_path: Path
) -> None:
    def described(name: str) -> Path:
        tuned = pico.reconfigure(finetune_folder("bert_classifier", 1, 0.05), tmp_path / name, note=name)
        return pico.delta_file(base, tuned, tmp_path / f"{name}.delta")

    one, other = described("one"), described("other")
    fuse_files(base, {"one": one, "b": one}, tmp_path / "same")
    assert DeltaFile.open(tmp_path / "same").manifest.config == {"note": "one"}
    fuse_files(base, {"one": one, "other": other}, tmp_path / "mixed")
    assert DeltaFile.open(tmp_path / "mixed").manifest.config == {}
    # Two heads of equal classes: without either, the file may not speak of classes.
    encoder = model_folder("bert_encoder")
    heads = {n: model_folder("bert_classifier", seed=seed) for seed, n in enumerate("xy", 5)}
    headed = {name: pico.delta_file(encoder, model, tmp_path / name) for name, model in heads.items()}
    fuse_files(encoder, headed, tmp_path / "plain")
    manifest = DeltaFile.open(tmp_path / "plain").manifest
    assert (manifest.labels, manifest.config, manifest.prefix) == (None, {}, "")


def test_a_search_starts_at_the_given_lambdas(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    calibrations = dict.fromkeys(files, INPUTS)
    report = fuse_files(base, files, tmp_path / "x", lambdas=(1.5, 0.5), calibrations=calibrations, evaluations=1)
    assert report.lambdas == {"a": 1.5, "b": 0.5}


def test_added_tokens_are_kept_where_all_agree(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    """Of a fine-tune whose tokens took rows that the base had to spare."""

    def with_token(content: str) -> Path:
        tuned = pico.rewrite(llama_tuned, tmp_path / content, lambda tensors: tensors)
        tokenizer = AutoTokenizer.from_pretrained(llama)
        tokenizer.add_tokens([content])
        tokenizer.save_pretrained(tuned)
        return pico.delta_file(llama, tuned, tmp_path / f"{content}.delta")

    one, other, plain = with_token("newt"), with_token("frog"), pico.delta_file(llama, llama_tuned, tmp_path / "plain")
    for others in ({"b": one}, {"b": plain}):
        fuse_files(llama, {"a": one, **others}, tmp_path / "fused")
        assert [token.content for token in DeltaFile.open(tmp_path / "fused").manifest.tokens] == ["newt"]
    with pytest.raises(InvalidRecipe, match="tokens of one delta"):
        fuse_files(llama, {"a": one, "b": other}, tmp_path / "no")


def test_a_larger_vocabulary_is_kept(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    grown = pico.delta_file(llama, pico.grow(llama, tmp_path / "m", pico.VOCAB + 4), tmp_path / "grown")
    plain = pico.delta_file(llama, llama_tuned, tmp_path / "plain")
    fuse_files(llama, {"plain": plain, "grown": grown}, tmp_path / "fused")
    source, fused = decoded(llama, grown), decoded(llama, tmp_path / "fused")
    assert source.appended and fused.appended.keys() == source.appended.keys()
    assert all(torch.equal(fused.appended[name], rows) for name, rows in source.appended.items())
    assert fused.manifest.config["vocab_size"] == pico.VOCAB + 4
    report = fuse_files(
        llama,
        {"plain": plain, "grown": grown},
        tmp_path / "searched",
        calibrations={"plain": INPUTS, "grown": INPUTS},
        evaluations=2,
    )
    assert report.evaluations == 2
    with pytest.raises(InvalidRecipe, match="add tokens"):
        fuse_files(llama, {"one": grown, "two": grown}, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_refusals(base: Path, files: dict[str, Path], llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    with pytest.raises(InvalidRecipe, match="3 weights for 2 deltas"):
        fuse_files(base, files, out, lambdas=(1, 2, 3))
    with pytest.raises(InvalidRecipe, match="not between"):
        fuse_files(base, files, out, lambdas=(1, float("nan")))
    with pytest.raises(InvalidRecipe, match="'b' has no calibration"):
        fuse_files(base, files, out, calibrations={"a": INPUTS})
    with pytest.raises(InvalidRecipe, match="'c' is not among"):
        fuse_files(base, files, out, calibrations={"a": INPUTS, "b": INPUTS, "c": INPUTS})
    with pytest.raises(InvalidRecipe, match="head 'c'"):
        fuse_files(base, files, out, head="c")
    with pytest.raises(InvalidRecipe, match="at least one"):
        fuse_files(base, {}, out)
    with pytest.raises(WrongBase):
        fuse_files(llama, files, out)
    assert not out.exists()
