"""Recordings to windows: units, references, filters, rates, and everything that is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from patchbay.errors import InputError
from patchbay.models.neuript.companding import compand, expand
from patchbay.models.neuript.montage import PAPER_20
from patchbay.models.neuript.preprocess import windows
from patchbay.models.neuript.recording import Recording, is_eeg
from patchbay.models.neuript.steps import RATE, Steps

NAMES = ("Fp1", "Fp2", "C3", "Cz", "C4", "O1", "O2")
PLAIN = Steps(rejects=False)


def recording(seconds: float = 12.0, rate: float = 160.0, names: tuple[str, ...] = NAMES, **changes: Any) -> Recording:
    """Rhythms of 3 to 20 Hz, other ones in every channel, of some 20 microvolts."""
    time = np.arange(round(seconds * rate)) / rate
    rng = np.random.default_rng(0)
    rates, phases = rng.uniform(3, 20, (len(names), 4, 1)), rng.uniform(0, 6.3, (len(names), 4, 1))
    signal = 10 * np.sin(2 * np.pi * rates * time + phases).sum(1)
    return replace(Recording(signal, rate, names, "uV"), **changes)


def middle(found: torch.Tensor) -> torch.Tensor:
    """In microvolts, without the beginning and the end, where a band from .1 Hz on needs seconds to settle."""
    return expand(found.transpose(0, 1).flatten(1))[:, 20 * RATE : -20 * RATE]


def test_windows_are_companded_and_at_the_models_rate() -> None:
    found = windows(recording(), PLAIN)
    assert found.signal.shape == (3, 7, 4 * RATE) and found.signal.dtype == torch.float32
    assert found.starts == (0, 4, 8) and not found.rejected and not found.dropped
    assert [channel.name for channel in found.montage.channels] == list(NAMES)
    assert found.done == (
        "to microvolts from uV",
        "band-pass 0.1 to 30 Hz (Butterworth, order 4, both ways)",
        "resampled from 160 to 64 Hz",
        "A-law companded (A = 0.25)",
    )


def test_rhythms_in_the_band_are_as_they_were() -> None:
    time = np.arange(60 * RATE) / RATE
    rng = np.random.default_rng(0)
    rates, phases = rng.uniform(3, 20, (7, 4, 1)), rng.uniform(0, 6.3, (7, 4, 1))
    expected = torch.from_numpy(10 * np.sin(2 * np.pi * rates * time + phases).sum(1)).float()
    found = middle(windows(recording(60), PLAIN).signal)
    torch.testing.assert_close(found, expected[:, 20 * RATE : -20 * RATE], atol=1.0, rtol=0)


@pytest.mark.parametrize("rate", [64.0, 100.0, 128.0, 250.0, 256.0, 500.0, 512.0, 1000.0, 2048.0, 99.5])
def test_any_rate_is_the_same_signal(rate: float) -> None:
    found, expected = (windows(recording(60, each), PLAIN).signal for each in (rate, 160.0))
    torch.testing.assert_close(middle(found), middle(expected), atol=1.0, rtol=0)


@pytest.mark.parametrize(("unit", "factor"), [("mV", 1e-3), ("V", 1e-6)])
def test_any_unit_is_the_same_signal(unit: str, factor: float) -> None:
    plain = recording()
    found = windows(replace(plain, signal=plain.signal * factor, unit=unit), PLAIN).signal
    torch.testing.assert_close(found, windows(plain, PLAIN).signal, atol=1e-4, rtol=0)


def test_drifts_and_the_mains_are_filtered() -> None:
    plain = recording(60, 250.0)
    time = np.arange(plain.signal.shape[1]) / 250
    noisy = plain.signal + 300 + 5 * time + 80 * np.sin(2 * np.pi * 50 * time)
    steps = replace(PLAIN, line_hz=50.0)
    found, expected = windows(replace(plain, signal=noisy), steps), windows(plain, steps)
    assert "notch at 50 Hz" in found.done
    torch.testing.assert_close(middle(found.signal), middle(expected.signal), atol=2.0, rtol=0)


def test_the_average_reference() -> None:
    found = windows(recording(), replace(PLAIN, reference="average")).signal
    assert float(expand(found).mean(1).abs().max()) < 0.05


def test_pairs_are_differences_whatever_the_reference_was() -> None:
    plain = recording(names=("Fp1", "F7", "T3", "EEG C3-REF", "Cz"))
    steps = replace(PLAIN, pairs=("Fp1-F7", "F7-T3", "T7-C3", "C3-Cz", "Cz-C4"))
    found = windows(plain, steps)
    assert [channel.name for channel in found.montage.channels] == ["Fp1-F7", "F7-T7", "T7-C3", "C3-Cz"]
    assert found.dropped == {"Cz-C4": "C4 not recorded"}
    moved = windows(replace(plain, signal=plain.signal + plain.signal[:1] * 0.7), steps)
    torch.testing.assert_close(moved.signal, found.signal, atol=1e-3, rtol=0)
    first, second = (expand(windows(plain, PLAIN).signal[:, row]) for row in (0, 1))
    torch.testing.assert_close(expand(found.signal[:, 0]), first - second, atol=0.05, rtol=1e-3)


def test_pairs_that_were_recorded_as_such() -> None:
    plain = recording(names=("EEG Fpz-Cz", "EEG Pz-Oz", "EOG horizontal", "EMG submental"))
    found = windows(plain, replace(PLAIN, pairs=("Fpz-Cz", "Pz-Oz")))
    assert [channel.name for channel in found.montage.channels] == ["Fpz-Cz", "Pz-Oz"]
    assert found.dropped == {"EOG horizontal": "no EEG by its name", "EMG submental": "no EEG by its name"}


def test_the_papers_channels_can_be_made() -> None:
    electrodes = sorted({name for pair in PAPER_20 for name in pair.split("-")})
    found = windows(recording(names=tuple(electrodes)), replace(PLAIN, pairs=PAPER_20))
    assert found.signal.shape[1] == 20 and not found.dropped


def test_a_flat_channel_is_dropped() -> None:
    plain = recording()
    plain.signal[2] = 7
    found = windows(plain, PLAIN)
    assert found.dropped == {"C3": "flat"} and found.signal.shape[1] == 6


@pytest.mark.parametrize("factor", [1000.0, 0.01])
def test_a_channel_in_another_unit_than_the_others_is_told_of(factor: float) -> None:
    """An average reference would spread it over all of them."""
    plain = recording()
    assert windows(plain, PLAIN).warnings == ()
    plain.signal[2] *= factor
    found = windows(plain, replace(PLAIN, reference="average"))
    assert found.signal.shape[1] == 7 and len(found.warnings) == 1
    assert re.fullmatch(r"C3 swings by \S+ uV, which no EEG does .*", found.warnings[0])


def test_windows_that_overlap() -> None:
    found = windows(recording(), replace(PLAIN, window_seconds=2.0, stride_seconds=0.5))
    assert found.signal.shape == (21, 7, 128) and found.starts[:3] == (0, 0.5, 1.0)
    assert torch.equal(found.signal[1, :, :96], found.signal[0, :, 32:])


def test_windows_that_are_none_to_read() -> None:
    plain = recording(20.0)
    plain.signal[0, round(5.5 * 160) : round(6.2 * 160)] += 400
    plain.signal[3, 8 * 160 : 13 * 160] = 0
    found = windows(plain, Steps())
    reasons = {each.start: each.reason for each in found.rejected}
    assert reasons[4.0] == "over 100 uV" and reasons[8.0] == "a channel is flat for a second"
    assert 16.0 in found.starts and len(found.starts) + len(reasons) == 5
    assert len(windows(plain, PLAIN).starts) == 5


@pytest.mark.parametrize("rest", [0.0, 3276.7])
@pytest.mark.parametrize("reference", ["recorded", "average"])
def test_where_nothing_is_recorded_nothing_is_read(rest: float, reference: str) -> None:
    """Neither as windows nor for the unit. A jump to the amplifier's limit and back still shows beside it."""
    plain = recording(60.0)
    plain.signal[:, 12 * 160 : 54 * 160] = rest
    found = windows(plain, replace(PLAIN, reference=reference))
    assert found.starts == (0, 4, 8, 56) and (rest or not found.warnings)
    assert {each.reason for each in found.rejected} == {"nothing is recorded for a second"}


@pytest.mark.parametrize("reference", ["recorded", "average"])
def test_a_channel_that_is_off_for_a_while(reference: str) -> None:
    plain = recording(20.0)
    plain.signal[3, 8 * 160 : 13 * 160] = 5
    steps = replace(PLAIN, reference=reference)
    found = windows(plain, replace(steps, rejects=True))
    off = [each for each in found.rejected if each.reason == "a channel is flat for a second"]
    assert [(each.start, each.channels) for each in off] == [(8.0, ("Cz",)), (12.0, ("Cz",))]
    said = windows(plain, steps)
    assert len(said.starts) == 5
    assert said.warnings == ("flat for a second or more, of 5 windows, and read all the same: Cz in 2",)


def test_a_channel_in_another_unit_is_in_all_others_by_the_average() -> None:
    plain = recording(20.0)
    plain.signal[3] *= 1e6
    [said] = windows(plain, replace(PLAIN, reference="average")).warnings
    assert said.startswith("Cz swings by") and said.endswith("by the average is in all others, too: leave it out")


def test_a_channel_that_never_comes_back_to_zero() -> None:
    plain = recording(40.0, names=("Cz",))
    time = np.arange(40 * 160) / 160
    plain.signal[0] = 4 * np.sin(2 * np.pi * 10 * time) + 40 * np.sin(2 * np.pi * time / 8)
    reasons = [each.reason for each in windows(plain, Steps(window_seconds=1.0)).rejected]
    assert "a channel never within 3 uV of zero" in reasons


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"rate": 0.0}, "sfreq", "a rate of 0 Hz is below 40"),
        ({"rate": 20.0}, "sfreq", "below 40"),
        ({"rate": float("nan")}, "sfreq", "nan"),
        ({"unit": "uv"}, "unit", "'uv' is no unit: give uV, mV or V"),
        ({"unit": "V"}, "unit", "as 'uV' it would be EEG"),
        ({"unit": "mV"}, "unit", "as 'uV' it would be EEG"),
        ({"names": NAMES[:6]}, "ch_names", "7 channels have 6 names"),
        ({"names": (*NAMES[:6], "Q9")}, "ch_names", "no position is known for channel 'Q9'"),
        ({"names": (*NAMES[:6], "FP1")}, "ch_names", "is there twice, as Fp1"),
        ({"names": tuple(f"EMG{n}" for n in range(7))}, "ch_names", "no channel is EEG by its name"),
        ({"signal": np.zeros((7, 2000))}, "signal", "the recording is flat"),
        ({"signal": np.zeros((7, 0))}, "signal", r"not the shape \[7, 0\]"),
        ({"signal": np.zeros(7)}, "signal", r"not the shape \[7\]"),
        ({"signal": np.zeros((2000, 7))}, "ch_names", "2000 channels have 7 names.*seems to be turned: transpose it"),
        ({"signal": np.zeros((2000, 9))}, "ch_names", "2000 channels have 7 names.*seems to be turned: transpose it"),
        ({"signal": np.ones((7, 1))}, "window_s", "has 0.00625 s and a window 4.*has 7 channels of 1 samples"),
        (
            {"signal": np.ones((7, 9))},
            "window_s",
            "has 0.0563 s and a window 4: send more, or .* windows$",
        ),
        ({"positions": {"Q9": (0.0, 50.0, 80.0)}}, "ch_pos_mm", "given for 'Q9', and no channel is called so: .* Fp1"),
        ({"positions": {"Cz": (0.0, -0.009, 0.1)}}, "ch_pos_mm", "in metres it would be; multiply by 1000"),
        ({"positions": {"Cz": (0.0, -0.9, 10.0)}}, "ch_pos_mm", "in centimetres it would be; multiply by 10"),
        ({"positions": {"Cz": (0.0, -900.0, 1e4)}}, "ch_pos_mm", "'Cz' is 1e\\+04 mm from the head's middle"),
        ({"positions": {"Cz": (0.0, 0.0, 0.0)}}, "ch_pos_mm", "'Cz' is 0 mm from the head's middle"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals(changes: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        windows(replace(recording(), **changes))
    assert caught.value.param == param


@pytest.mark.parametrize("unit", ["\u00b5V", "\u03bcV", " uV "])
def test_the_signs_of_micro(unit: str) -> None:
    found = windows(replace(recording(), unit=unit), PLAIN)
    assert torch.equal(found.signal, windows(recording(), PLAIN).signal)


def test_places_of_what_was_left_out_already() -> None:
    """A file's reader dropped it; whoever sends places of all its channels is right."""
    made = recording(positions={"ECG": (0.0, 50.0, 80.0)}, dropped={"ECG": "no EEG by its name"})
    assert windows(made, PLAIN).dropped == {"ECG": "no EEG by its name"}


def test_notes_are_handed_on() -> None:
    assert windows(recording(notes=("the file was cut off",)), PLAIN).warnings == ("the file was cut off",)


def test_volts_that_were_called_microvolts() -> None:
    plain = recording()
    with pytest.raises(InputError, match=r"as 'V' it would be EEG") as caught:
        windows(replace(plain, signal=plain.signal * 1e-6))
    assert caught.value.param == "unit"


@pytest.mark.parametrize(
    ("factor", "unit", "hint"),
    [
        (1e6, "uV", "1e-6 times as much would be EEG; an amplifier's counts"),
        (1e3, "uV", "1e-3 times as much would be EEG; are they in nV"),
        (1e2, "uV", "1e-2 times as much would be EEG; an amplifier's counts"),
        (1e-9, "V", "1e3 times as much would be EEG; an amplifier's counts"),
    ],
)
def test_numbers_that_no_unit_makes_eeg(factor: float, unit: str, hint: str) -> None:
    plain = recording()
    with pytest.raises(InputError, match=hint):
        windows(replace(plain, signal=plain.signal * factor, unit=unit))


@pytest.mark.parametrize("factor", [0.05, 10.0])
def test_numbers_that_are_hardly_eeg(factor: float) -> None:
    plain = recording()
    (said,) = windows(replace(plain, signal=plain.signal * factor), PLAIN).warnings
    assert said.endswith("uV, where 1.5 to 150 are usual: is the unit right, and the gain?")


def test_a_rate_at_which_the_band_is_not_there() -> None:
    assert windows(recording(rate=60.0), PLAIN).warnings == ()
    found = windows(recording(rate=40.0), PLAIN).warnings
    assert found == ("at 40 Hz nothing above 20 Hz is recorded, and up to 30 is read",)


def test_channels_that_are_copies() -> None:
    """Called what they are, and not flat, where their difference is nothing."""
    plain = recording()
    plain.signal[2], plain.signal[4], plain.signal[5], plain.signal[6] = plain.signal[3], plain.signal[3], 0, 0
    found = windows(plain, replace(PLAIN, pairs=("Fp1-C3", "C3-Cz")))
    assert found.dropped["C3-Cz"] == "its electrodes do not differ"
    assert "C3, Cz are identical: copies of one channel" in found.warnings
    assert windows(plain, PLAIN).warnings[0] == "C3, Cz, C4 are identical: copies of one channel"
    every = replace(plain, signal=np.tile(plain.signal[:1], (7, 1)))
    with pytest.raises(InputError, match="it does not differ from the average; are they copies of one"):
        windows(every, replace(PLAIN, reference="average"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite(value: float) -> None:
    plain = recording()
    plain.signal[3, 77] = value
    with pytest.raises(InputError, match="channel 'Cz' has NaN or infinity at sample 77"):
        windows(plain)


def test_too_short_a_recording() -> None:
    with pytest.raises(InputError, match="has 2 s and a window 4") as caught:
        windows(recording(2.0))
    assert caught.value.param == "window_s"
    assert windows(recording(2.0), replace(PLAIN, window_seconds=2.0)).signal.shape[0] == 1


def test_pairs_of_which_none_is_there() -> None:
    with pytest.raises(InputError, match="none of the bipolar channels can be made"):
        windows(recording(), replace(PLAIN, pairs=("F7-T3", "F8-T4")))


def test_more_channels_than_any_cap_has() -> None:
    with pytest.raises(InputError, match="257 channels are more than 256"):
        windows(Recording(np.zeros((257, 10)), 64.0, tuple(map(str, range(257))), "uV"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Fp1", True),
        ("EEG T3-REF", True),
        ("E17", True),
        ("EMG submental", False),
        ("EOG horizontal", False),
        ("ECG EKG", False),
        ("EKG1", False),
        ("Resp oro-nasal", False),
        ("SpO2", False),
        ("PHOTIC-REF", False),
        ("STATUS", False),
        ("CQ_AF3", False),
        ("GYROX", False),
        ("TIME_STAMP_s", False),
        ("Event marker", False),
        ("DC1", False),
    ],
)
def test_names_that_are_no_eeg(name: str, expected: bool) -> None:
    assert is_eeg(name) is expected


def test_what_is_learnt_on_is_companded() -> None:
    """Values as the paper's loss has them: about two for real EEG, not twenty."""
    found = windows(recording(), PLAIN).signal
    assert 0.5 < float(found.abs().mean()) < 3
    torch.testing.assert_close(compand(expand(found)), found)
