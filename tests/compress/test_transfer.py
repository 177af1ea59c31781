"""The curve against models that transformers runs with weights written out as W0 + lambda * D."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from patchbay.backbone import Backbone
from patchbay.compress.calibration import Calibration
from patchbay.compress.transfer import Curve, CurvePoint, transfer
from patchbay.delta import Delta, read_delta
from patchbay.errors import InputError, InvalidRecipe, UnsupportedTask, WrongBase

ModelFolder = Callable[..., Path]
TEXTS = ("the cat runs", "a big dog eats one fox", "my owl likes good film", "bad", "red green two is not small")
INPUTS = Calibration(TEXTS)
SCALES = (-0.5, 0.0, 0.5, 1.0, 1.5)


@pytest.fixture(scope="module", params=["magnitude", "low_rank"])
def classifier(
    request: pytest.FixtureRequest,
    model_folder: ModelFolder,
    finetune_folder: ModelFolder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A delta of a classifier with the base's labels, whose head is a matrix like any other."""
    out = tmp_path_factory.mktemp("delta") / "d"
    tuned = finetune_folder("bert_classifier", scale=0.1)
    return pico.delta_file(model_folder("bert_classifier"), tuned, out, method=request.param, density=0.5)


@pytest.fixture(scope="module")
def headed(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta of a plain encoder that brings a head of its own."""
    out = tmp_path_factory.mktemp("delta") / "d"
    return pico.delta_file(model_folder("bert_encoder"), model_folder("bert_classifier", seed=5), out, density=0.5)


def loaded(base: Path, file: Path) -> Delta:
    backbone = Backbone.load(base, device="cpu")
    return read_delta(file, backbone.specs, backbone.fingerprint)


def materialised(base: Path, delta: Delta, scale: float, out: Path) -> Path:
    """W0 + scale * D as a model folder of the base's kind."""

    def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: t + scale * delta.difference(name) if name in delta else t for name, t in tensors.items()}

    return pico.rewrite(base, out / f"at{scale}", moved)


def tokens(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoTokenizer.from_pretrained(folder)(list(TEXTS), padding=True, return_tensors="pt"))


@torch.inference_mode()
def log_probabilities(folder: Path) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return torch.log_softmax(model(**tokens(folder)).logits, -1)


def negative_kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    return -float((reference.exp() * (reference - other)).sum(-1).mean())


def test_every_point_of_a_classifier(model_folder: ModelFolder, classifier: Path, tmp_path: Path) -> None:
    base = model_folder("bert_classifier")
    curve = transfer(base, classifier, SCALES, calibration=INPUTS)
    delta = loaded(base, classifier)
    outputs = {scale: log_probabilities(materialised(base, delta, scale, tmp_path)) for scale in SCALES}
    assert [point.scale for point in curve.points] == list(SCALES)
    for point in curve.points:
        assert point.target == pytest.approx(negative_kl(outputs[1.0], outputs[point.scale]), rel=1e-3, abs=1e-6)
        assert point.retained == pytest.approx(negative_kl(outputs[0.0], outputs[point.scale]), rel=1e-3, abs=1e-6)
    assert (curve.target_measure, curve.retained_measure, curve.best) == ("negative_kl", "negative_kl", None)
    assert curve.points[3].target == pytest.approx(0, abs=1e-6)
    assert curve.points[3].target > curve.points[2].target > curve.points[1].target
    assert curve.points[1].retained == pytest.approx(0, abs=1e-6)
    assert curve.points[1].retained > curve.points[2].retained > curve.points[3].retained


def test_retained_embeddings_of_a_plain_encoder(model_folder: ModelFolder, headed: Path, tmp_path: Path) -> None:
    base = model_folder("bert_encoder")
    curve = transfer(base, headed, SCALES, calibration=INPUTS)
    delta = loaded(base, headed)

    def embeddings(scale: float) -> torch.Tensor:
        folder = materialised(base, delta, scale, tmp_path)
        batch = tokens(folder)
        with torch.inference_mode():
            hidden = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)

    for point in curve.points:
        cosine = torch.nn.functional.cosine_similarity(embeddings(0.0), embeddings(point.scale)).mean()
        assert point.retained == pytest.approx(float(cosine), abs=1e-5)
    assert (curve.target_measure, curve.retained_measure) == ("negative_kl", "cosine_similarity")
    assert curve.points[3].target == pytest.approx(0, abs=1e-6)


def test_labels_make_rates_and_a_best_point(model_folder: ModelFolder, headed: Path, tmp_path: Path) -> None:
    base, tuned = model_folder("bert_encoder"), model_folder("bert_classifier", seed=5)
    delta = loaded(base, headed)

    def classes(scale: float) -> list[str]:
        """The delta's own head on the encoder, in the fine-tune's layout."""
        encoder = pico.weights(materialised(base, delta, scale, tmp_path))
        out = pico.rewrite(
            tuned, tmp_path / f"full{scale}", lambda t: {**{f"bert.{n}": v for n, v in encoder.items()}, **delta.added}
        )
        return [pico.LABELS[number] for number in log_probabilities(out).argmax(-1).tolist()]

    found = {scale: classes(scale) for scale in SCALES}
    labels = tuple(found[1.0][:-1]) + tuple(label for label in pico.LABELS if label != found[1.0][-1])[:1]
    curve = transfer(base, headed, SCALES, calibration=Calibration(TEXTS, labels))
    for point in curve.points:
        hits = sum(one == two for one, two in zip(found[point.scale], labels, strict=True))
        assert point.target == pytest.approx(hits / len(TEXTS))
    assert curve.points[3].target == pytest.approx(0.8)
    assert (curve.target_measure, curve.retained_measure) == ("accuracy", "cosine_similarity")

    def mean(point: CurvePoint) -> float:
        return 2 / (1 / point.target + 1 / point.retained) if min(point.target, point.retained) > 0 else 0.0

    assert curve.best is not None and mean(curve.best) == pytest.approx(max(map(mean, curve.points)))


def test_retained_inputs_have_labels_of_the_base(model_folder: ModelFolder, classifier: Path) -> None:
    base = model_folder("bert_classifier")
    before = [pico.LABELS[number] for number in log_probabilities(base).argmax(-1).tolist()]
    retained = Calibration(TEXTS[:3], tuple(before[:3]))
    curve = transfer(base, classifier, (0.0, 1.0), calibration=INPUTS, retained=retained)
    assert (curve.target_measure, curve.retained_measure) == ("negative_kl", "accuracy")
    assert curve.best is None, "a divergence is no rate, not even at 0"
    assert curve.points[0].retained == 1.0
    assert curve.points[1].retained in (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)


def test_a_new_head_does_not_answer_for_the_base(model_folder: ModelFolder, tmp_path: Path) -> None:
    """The fine-tune has other classes: the base's are what it had to lose."""
    base, tuned = model_folder("bert_classifier"), model_folder("bert_classifier", seed=5, labels=("yes", "no"))
    file = pico.delta_file(base, tuned, tmp_path / "d", density=0.5)
    curve = transfer(base, file, (0.0, 1.0), calibration=INPUTS)
    delta = loaded(base, file)
    outputs = [log_probabilities(materialised(base, delta, scale, tmp_path)) for scale in (0.0, 1.0)]
    assert outputs[0].shape[1] == 3 and delta.labels == ("yes", "no")
    assert curve.points[1].retained == pytest.approx(negative_kl(*outputs), rel=1e-3)


def test_a_language_model(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    file = pico.delta_file(llama, llama_tuned, tmp_path / "d", density=0.5)
    curve = transfer(llama, file, (0.0, 0.5, 1.0), calibration=INPUTS)
    delta = loaded(llama, file)
    batch = tokens(llama)

    @torch.inference_mode()
    def outputs(scale: float) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(materialised(llama, delta, scale, tmp_path)).eval()
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return torch.log_softmax(logits[batch["attention_mask"].bool()], -1)

    reference, half, full = outputs(0.0), outputs(0.5), outputs(1.0)
    assert curve.points[1].target == pytest.approx(negative_kl(full, half), rel=1e-2)
    assert curve.points[1].retained == pytest.approx(negative_kl(reference, half), rel=1e-2)
    assert curve.points[0].target < curve.points[1].target < curve.points[2].target


def test_an_embedding_model_without_any_head(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path: Path
) -> None:
    base = model_folder("bert_encoder")
    file = pico.delta_file(base, finetune_folder("bert_encoder", scale=0.1), tmp_path / "d", density=0.5)
    curve = transfer(base, file, (0.0, 0.5, 1.0), calibration=INPUTS)
    assert curve.target_measure == curve.retained_measure == "cosine_similarity"
    assert [curve.points[2].target, curve.points[0].retained] == pytest.approx([1, 1], abs=1e-6)
    assert curve.points[0].target == pytest.approx(curve.points[2].retained, abs=1e-6)
    assert curve.points[0].target < 0.999
    assert curve.best == curve.points[1]


def test_progress_and_files(model_folder: ModelFolder, classifier: Path, tmp_path: Path) -> None:
    lines = tmp_path / "inputs.txt"
    lines.write_text("\n".join(TEXTS))
    steps: list[tuple[int, int, str]] = []
    base = model_folder("bert_classifier")
    curve = transfer(base, classifier, (0.0, 1.0), calibration=lines, on_progress=lambda *step: steps.append(step))
    assert steps == [(0, 2, "scale 0"), (1, 2, "scale 1")]
    assert curve == transfer(base, classifier, (0.0, 1.0), calibration=INPUTS, retained=lines)


def test_weights_out_of_range_are_a_hole_in_the_curve(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Two layers in a row grow with the square of lambda: at 10 the embeddings are no numbers any more."""
    base = model_folder("bert_encoder")

    def huge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        grown = ("intermediate.dense.weight", "1.output.dense.weight")
        return {name: tensor + 2e8 if name.endswith(grown) else tensor for name, tensor in tensors.items()}

    tuned = pico.rewrite(base, tmp_path / "m", huge)
    file = pico.delta_file(base, tuned, tmp_path / "d", values="fp32", density=1.0)
    curve = transfer(base, file, (0.0, 1.0, 10.0), calibration=INPUTS)
    assert math.isnan(curve.points[2].retained) and math.isnan(curve.points[2].target)
    assert curve.points[0].retained == pytest.approx(1)
    assert curve.points[1].target == pytest.approx(1)
    assert curve.best in curve.points[:2]


@pytest.mark.parametrize("scales", [(), (10.5,), (0.0, -11.0), (math.nan,), (math.inf,)])
def test_scales_that_no_recipe_takes(llama: Path, tmp_path: Path, scales: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        transfer(llama, tmp_path / "unread", scales, calibration=INPUTS)
    assert caught.value.param == "scales"


def test_refusals(model_folder: ModelFolder, finetune_folder: ModelFolder, classifier: Path, tmp_path: Path) -> None:
    base, encoder = model_folder("bert_classifier"), model_folder("bert_encoder")
    with pytest.raises(WrongBase):
        transfer(encoder, classifier, (1.0,), calibration=INPUTS)
    with pytest.raises(InputError, match="no class 'cow'"):
        transfer(base, classifier, (1.0,), calibration=Calibration(TEXTS[:1], ("cow",)))
    plain = pico.delta_file(encoder, finetune_folder("bert_encoder"), tmp_path / "d")
    with pytest.raises(UnsupportedTask, match="classifier"):
        transfer(encoder, plain, (1.0,), calibration=INPUTS, retained=Calibration(TEXTS[:1], ("cat",)))


def test_the_curve_is_plain_data() -> None:
    point = CurvePoint(1.0, 0.5, 0.5)
    assert Curve((point,), "accuracy", "accuracy", point).best is point
