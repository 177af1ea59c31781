"""NeurIPT in braindecode's manner: units, channels as MNE describes them, heads, and what is refused."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.neuript.test_classification import build
from tests.models.neuript.test_preprocess import NAMES, PLAIN, middle, recording
from torch import nn
from torch.nn import functional

from patchbay.errors import InputError
from patchbay.models.neuript import Montage, NeurIPTForEEGClassification
from patchbay.models.neuript.braindecode import BraindecodeModel, as_braindecode
from patchbay.models.neuript.chs_info import montage_of
from patchbay.models.neuript.companding import expand
from patchbay.models.neuript.montage import electrode_positions
from patchbay.models.neuript.preprocess import windows
from patchbay.models.neuript.steps import Steps

EMPTY = (float("nan"),) * 12


def channels(*names: str, **locs: tuple[float, ...]) -> list[dict[str, Any]]:
    """As MNE's info["chs"] has them: places in metres, those of what a channel is referenced to behind."""
    return [{"ch_name": name, "kind": 2, "loc": np.array(locs.get(name, EMPTY))} for name in names]


def wrapped(names: tuple[str, ...] = NAMES, n_times: int = 64, **changes: Any) -> BraindecodeModel:
    return as_braindecode(build(**changes), chs_info=channels(*names), sfreq=64.0, n_times=n_times)


def volts(rows: int = 2, count: int = len(NAMES), length: int = 64) -> torch.Tensor:
    return 2e-5 * torch.randn(rows, count, length, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("labels", [2, 3])
def test_the_models_answer_on_windows_in_volts(labels: int) -> None:
    """Of a recording whose windows are made here, once companded and once as MNE would have them."""
    made = windows(recording(), PLAIN)
    adapter = wrapped(n_times=256, num_labels=labels)
    rows = len(made.signal)
    at, lobes = made.montage.positions.expand(rows, -1, -1), made.montage.lobes.expand(rows, -1, -1)
    with torch.inference_mode():
        expected = adapter.model(made.signal, at, lobes).logits
        found = adapter((expand(made.signal.double()) / 1e6).float())
    assert found.shape == (3, labels)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_unit_matters() -> None:
    """Microvolts in place of volts are said to be none; white noise of a smoke test is still answered."""
    adapter, x = wrapped(num_labels=3), volts()
    with torch.inference_mode():
        expected = adapter(x)
        with pytest.warns(UserWarning, match="give volts"):
            assert float((adapter(x * 1e6) - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("length", [1, 7, 250])
def test_any_length_is_read(length: int) -> None:
    """As of any model of braindecode's that has no layer as long as the window; it may be a slip, though."""
    adapter = wrapped(num_labels=4)
    with torch.inference_mode(), pytest.warns(UserWarning, match=f"x has {length} samples and n_times is 64"):
        assert adapter(volts(length=length)).shape == (2, 4)


def test_windows_of_another_length_than_in_training() -> None:
    steps = Steps(window_seconds=2.0).to_config()
    with pytest.warns(UserWarning, match="n_times is 64, and the model was trained on windows of 128 samples"):
        wrapped(num_labels=2, preprocessing=steps)
    wrapped(num_labels=2, n_times=128, preprocessing=steps)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_windows_that_are_not_finite(value: float) -> None:
    adapter, x = wrapped(num_labels=2), volts()
    x[1, 3, 7] = value
    with pytest.raises(InputError, match="window 1 of x has NaN or infinity in channel 3 at sample 7") as caught:
        adapter(x)
    assert caught.value.param == "x"


def test_places_and_lobes_reach_the_model() -> None:
    """The same signal from elsewhere is another one, and the order of channels is none."""
    x, names = volts(count=3), ("Fp1", "Cz", "O2")
    with torch.inference_mode():
        first, moved, turned = (wrapped(which, num_labels=3) for which in (names, ("Fp1", "Cz", "T8"), names[::-1]))
        assert float((first(x) - moved(x)).abs().max()) > 1e-3
        torch.testing.assert_close(turned(x.flip(1)), first(x), atol=1e-5, rtol=1e-4)


def test_what_the_head_reads() -> None:
    adapter, x = wrapped(num_labels=3), volts()
    with torch.inference_mode():
        found = adapter(x, return_features=True)
        assert found.keys() == {"features", "cls_token"} and found["cls_token"] is None
        assert found["features"].shape == (2, 7 * 5 * 48)
        torch.testing.assert_close(adapter.model.classifier(found["features"]), adapter(x))


def test_gradients_reach_everything() -> None:
    adapter, x = wrapped(num_labels=2, dropout=0.0).train(), volts().requires_grad_()
    functional.cross_entropy(adapter(x), torch.tensor([0, 1])).backward()
    assert x.grad is not None and bool((x.grad != 0).any()) and bool(torch.isfinite(x.grad).all())
    without = {name for name, weight in adapter.named_parameters() if weight.grad is None}
    assert not without


def test_it_learns_by_braindecodes_loss() -> None:
    adapter = wrapped(("Fp1", "Fp2", "O1", "O2"), 32, num_labels=2, dropout=0.0, merges=(1, 4), experts=(0, 2)).train()
    optimiser = torch.optim.AdamW(adapter.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        labels = torch.randint(2, (8,), generator=generator)
        x = 3e-6 * torch.randn(8, 4, 32, generator=generator)
        x[labels == 0, :2] *= 10
        x[labels == 1, 2:] *= 10
        logits = adapter(x)
        optimiser.zero_grad()
        functional.cross_entropy(logits, labels).backward()
        optimiser.step()
    assert float((logits.argmax(1) == labels).float().mean()) >= 0.875


def test_the_wrapped_model_is_saved_as_ever(tmp_path: Path) -> None:
    adapter, x = wrapped(num_labels=2), volts()
    adapter.reset_head(5)
    assert {name.removeprefix("model.") for name in adapter.state_dict()} == set(adapter.model.state_dict())
    adapter.model.save_pretrained(tmp_path)
    again = NeurIPTForEEGClassification.from_pretrained(tmp_path).eval()
    assert json.loads((tmp_path / "config.json").read_text())["id2label"].keys() == set("01234")
    with torch.inference_mode():
        expected = adapter(x)
        found = as_braindecode(again, chs_info=adapter.chs_info, sfreq=64, n_times=64)(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("hidden", "shapes"), [(0, [(4, 1680)]), (16, [(16, 1680), (4, 16)])])
def test_a_new_head(hidden: int, shapes: list[tuple[int, int]]) -> None:
    """Of the old one's kind, as a new model has it: biases of zero, weights with the variance 1 / inputs."""
    adapter = wrapped(num_labels=3, head_size=hidden, label_priors=[0.2, 0.3, 0.5])
    config, encoder = adapter.model.config, copy.deepcopy(adapter.model.neuript.state_dict())
    adapter.reset_head(4)
    linear = [layer for layer in adapter.model.classifier.modules() if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == shapes
    assert not any(bool(layer.bias.any()) for layer in linear)
    assert float(linear[0].weight.detach().std() * 1680**0.5) == pytest.approx(1, abs=0.05)
    assert (adapter.n_outputs, config.num_labels, len(config.label2id), config.label_priors) == (4, 4, 4, None)
    with torch.inference_mode():
        assert adapter(volts()).shape == (2, 4) == (2, *adapter.get_output_shape()[1:])
    torch.testing.assert_close(dict(adapter.model.neuript.state_dict()), dict(encoder), rtol=0, atol=0)


def test_a_new_head_of_as_many_classes() -> None:
    """Two are one number, as ever; the old classes' names would be wrong."""
    adapter = wrapped(id2label={0: "left", 1: "right"}).to(torch.bfloat16)
    old = adapter.model.classifier.weight.clone()
    adapter.reset_head(2)
    assert adapter.model.classifier.weight.shape == old.shape == (1, 1680)
    assert adapter.model.classifier.weight.dtype == torch.bfloat16
    assert not torch.equal(adapter.model.classifier.weight, old)
    assert adapter.model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    with torch.inference_mode():
        assert adapter(volts()).shape == (2, 2)


@pytest.mark.parametrize("outputs", [1, 0, -3])
def test_heads_that_are_none(outputs: int) -> None:
    adapter = wrapped(num_labels=3)
    with pytest.raises(InputError, match="give 2 or more"):
        adapter.reset_head(outputs)
    assert adapter.n_outputs == 3


def test_a_name_comes_before_a_place() -> None:
    names = ("EEG FP1-REF", "Cz..", "T3")
    there = channels(*names, **{"Cz..": (0.01, 0.02, 0.03, *EMPTY[3:])})
    assert montage_of(there) == montage_of(channels(*names)) == Montage.of(names)


@given(st.sampled_from(sorted(electrode_positions())), st.sampled_from([np.array, list]))
def test_a_place_in_the_heads_frame(name: str, kind: Any) -> None:
    """Through the matrix that MNE has for the head of electrodes.json."""
    to_head = np.array(
        [
            [0.99999368, 0.00355187, 0.00020205, -1.76272],
            [-0.00355757, 0.99838912, 0.05662586, 31.09435],
            [-0.00000059, -0.05662622, 0.99839544, 39.59725],
        ]
    )
    metres = to_head @ (*electrode_positions()[name], 1.0) / 1e3
    [channel] = montage_of([{"ch_name": "E7", "loc": kind([*metres, *EMPTY[3:]])}]).channels
    np.testing.assert_allclose(channel.position, electrode_positions()[name], atol=1e-3)


def test_the_channels_of_mne() -> None:
    """With an electrode's place under another name."""
    mne = pytest.importorskip("mne")
    names = ["Fp1", "Cz", "T7", "O2"]
    info = mne.create_info(names, 64.0, "eeg")
    info.set_montage("colin27_1005")
    expected = montage_of(info["chs"])
    mne.rename_channels(info, {"Cz": "A99", "O2": "B7"})
    found = montage_of(info["chs"])
    assert [channel.name for channel in found.channels] == ["Fp1", "A99", "T7", "B7"]
    torch.testing.assert_close(found.positions, expected.positions, atol=0.01, rtol=0)
    assert torch.equal(found.lobes, expected.lobes)


def test_what_mne_makes_of_a_recording() -> None:
    """As the docstring has it: the same microvolts as `windows`, away from the ends."""
    mne = pytest.importorskip("mne")
    whole = recording(60.0, 250.0)
    raw = mne.io.RawArray(whole.signal * 1e-6, mne.create_info(list(NAMES), 250.0, "eeg"), verbose="error")
    raw.filter(0.1, 30, method="iir", verbose="error").resample(64, method="polyphase", verbose="error")
    as_braindecode(build(), chs_info=raw.info["chs"], sfreq=raw.info["sfreq"], n_times=256)
    found = torch.from_numpy(raw.get_data() * 1e6).float()
    torch.testing.assert_close(found[:, 20 * 64 : -20 * 64], middle(windows(whole, PLAIN).signal), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("there", "text"),
    [
        ([], "no channel"),
        ([{"loc": EMPTY}], "channel 0 has no ch_name"),
        ([{"ch_name": "E7"}], "'E7' has no place"),
        (channels("Cz", "E7"), "'E7' has no place"),
        (channels("E7", E7=(0.0,) * 12), "'E7' has no place"),
        (channels("E7", E7=(0.0, 0.1)), "'E7' has no place"),
        (channels("E7", E7=(0.0, float("inf"), 0.1)), "'E7' has no place"),
        (channels("E7", E7=(10.0, 85.0, 40.0)), "loc is in metres"),
        (channels("Cz", "EOG left", **{"EOG left": (0.0, 0.1, 0.0)}), "'EOG left' is no EEG"),
        (channels("T3", "T7"), "there twice"),
    ],
)
def test_channels_that_are_none(there: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(InputError, match=text):
        as_braindecode(build(), chs_info=there, sfreq=64, n_times=64)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"sfreq": 250, "n_times": 64}, r"raw\.filter\(0\.1, 30, method='iir'\)\.resample\(64, method='polyphase'\)"),
        ({"sfreq": float("nan"), "n_times": 64}, "reads 64 Hz"),
        ({"n_times": 65, "input_window_seconds": 1.0}, "n_times is 65, and 1 s at 64 Hz are 64 samples"),
        ({}, "give n_times or input_window_seconds"),
        ({"n_times": 0}, "0 samples"),
        ({"n_times": -64, "input_window_seconds": -1.0}, "-1 s"),
        ({"input_window_seconds": float("nan")}, "nan s"),
        ({"input_window_seconds": float("inf")}, "inf s"),
    ],
)
def test_what_does_not_fit(given: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        as_braindecode(build(), **{"chs_info": channels(*NAMES), "sfreq": 64, **given})


def test_the_band_is_the_one_that_the_model_was_tuned_with() -> None:
    model = build(preprocessing=Steps(band_hz=(0.5, 25.0), line_hz=60.0).to_config())
    with pytest.raises(InputError, match=r"raw\.filter\(0\.5, 25, method='iir'\)\.notch_filter\(60, method='iir'\)"):
        as_braindecode(model, chs_info=channels(*NAMES), sfreq=128, n_times=64)


LISTED = Steps(window_seconds=1.0, channels=("O1", "C4", "C3", "Cz"), reference="average", line_hz=50.0, rejects=False)
IN_PAIRS = Steps(window_seconds=1.0, pairs=("Fp1-C3", "C3-O1", "Cz-C4"), reference="average", rejects=False)


@pytest.mark.parametrize(("steps", "names"), [(LISTED, ("C3", "Cz", "C4", "O1")), (IN_PAIRS, NAMES), (PLAIN, NAMES)])
def test_the_config_is_done_to_windows(steps: Steps, names: tuple[str, ...]) -> None:
    """As to any recording: order, reference, pairs, the mains and the rate, whatever MNE has of the recording."""
    whole = recording(20.0, 250.0)
    made = windows(whole, steps)
    module = as_braindecode(
        build(preprocessing=steps.to_config()), chs_info=channels(*names), sfreq=64, n_times=made.signal.shape[2]
    )
    rows = [whole.names.index(name) for name in names]
    prepared = module.prepared(whole.signal[rows] * 1e-6, 250.0)
    cut = np.stack([prepared[:, round(64 * at) :][:, : module.n_times] for at in made.starts])
    count = len(cut)
    at, lobes = made.montage.positions.expand(count, -1, -1), made.montage.lobes.expand(count, -1, -1)
    with torch.inference_mode():
        expected = module.model(made.signal, at, lobes).logits
        found = module(torch.from_numpy(cut).float())
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_more_channels_than_the_model_reads() -> None:
    model = build(preprocessing=LISTED.to_config())
    with pytest.raises(InputError, match=r"of these 7 channels the model reads O1, C4, C3, Cz, and not Fp1, Fp2, O2"):
        as_braindecode(model, chs_info=channels(*NAMES), sfreq=64, n_times=64)
    with pytest.raises(InputError, match=r"raw\.pick\(\['O1', 'C4', 'C3', 'Cz'\]\)") as caught:
        as_braindecode(model, chs_info=channels(*NAMES), sfreq=64, n_times=64)
    assert caught.value.param == "chs_info"


def test_fewer_channels_than_the_model_reads() -> None:
    model = build(preprocessing=LISTED.to_config())
    with pytest.warns(UserWarning, match=r"of the 4 channels .* it reads 3: without Cz \(not recorded\)"):
        as_braindecode(model, chs_info=channels("O1", "C4", "C3"), sfreq=64, n_times=64)
    with pytest.raises(InputError, match=r"without O1 \(not recorded\) nothing is left"):
        as_braindecode(model, chs_info=channels("C3", "Cz", "C4"), sfreq=64, n_times=64)
    with pytest.raises(InputError, match="none of the channels O1, C4, C3, Cz is recorded"):
        as_braindecode(model, chs_info=channels("F3", "F4"), sfreq=64, n_times=64)


def test_a_dead_channel() -> None:
    """The server leaves it out; a module has as many channels as it was made with."""
    adapter, x = wrapped(num_labels=3), volts()
    x[:, 2] = 0
    with torch.inference_mode(), pytest.warns(UserWarning, match="C3: flat in every window"):
        adapter(x)
    whole = recording()
    whole.signal[2] = 3
    with pytest.raises(InputError, match="C3: flat; leave it out"):
        adapter.prepared(whole.signal * 1e-6, 160.0)


@pytest.mark.parametrize(
    ("factor", "rate", "count", "text"),
    [
        (1.0, 160.0, 7, "as 'uV' it would be EEG"),
        (1e-6, 30.0, 7, "below 40"),
        (1e-6, 160.0, 6, "6 channels have 7 names"),
        (np.nan, 160.0, 7, "has NaN"),
    ],
)
def test_recordings_that_are_none(factor: float, rate: float, count: int, text: str) -> None:
    with pytest.raises(InputError, match=text):
        wrapped().prepared(recording().signal[:count] * factor, rate)


@pytest.mark.parametrize("shape", [(7, 64), (2, 6, 64), (2, 64, 7), (2, 7, 0), (0, 7, 64), (2, 1, 7, 64)])
def test_windows_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\[batch, 7, 64\]"):
        wrapped()(torch.zeros(shape))


@given(st.integers(1, 10_000))
def test_lengths_in_samples_and_seconds(length: int) -> None:
    """Those of one give the other back."""
    model, there = MODEL, channels("Cz")
    by_samples = as_braindecode(model, chs_info=there, sfreq=64, n_times=length)
    seconds = by_samples.input_window_seconds
    by_seconds = as_braindecode(model, chs_info=there, sfreq=64, input_window_seconds=seconds)
    both = as_braindecode(model, chs_info=there, sfreq=64, n_times=length, input_window_seconds=seconds)
    assert by_seconds.n_times == both.n_times == by_samples.n_times == length


MODEL = build(merges=(1,), experts=(0,))


def test_braindecodes_own_mixin_says_the_same() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixin = pytest.importorskip("braindecode.models.base").EEGModuleMixin

        class Theirs(mixin, nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x[:, :3, 0]

        ours = wrapped(n_times=160, num_labels=3)
        theirs = Theirs(n_outputs=3, chs_info=ours.chs_info, input_window_seconds=2.5, sfreq=64)
    theirs.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    for name in ("n_outputs", "n_chans", "n_times", "input_window_seconds", "sfreq", "input_shape"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.chs_info is not None and [each["ch_name"] for each in theirs.chs_info] == list(NAMES)
    assert ours.get_output_shape() == theirs.get_output_shape() == tuple(ours(torch.zeros(ours.input_shape)).shape)
    assert callable(mixin.reset_head)
