"""/v1/eeg: a recording is answered as the model answers what was made of it, and what is wrong with one is said."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import pico
from tests.service.eeg import (
    NAMES,
    NUMBERS,
    PATIENT,
    RATE,
    TRAINED,
    WIDE,
    ask,
    classifier,
    edf_bytes,
    encoder,
    mixed_edf,
    npy_bytes,
    rows,
    send,
    wide_rows,
)
from tests.service.serving import Serve, Served, assert_error, ok, serving

from patchbay.backbone import Backbone
from patchbay.compress.reconstruct import reconstruct
from patchbay.models.neuript import NeurIPTForEEGClassification, NeurIPTModel, as_braindecode, edf
from patchbay.models.neuript.preprocess import windows
from patchbay.models.neuript.recording import Recording
from patchbay.models.neuript.steps import Steps
from patchbay.models.signals import signal_batch

TWO = {"window_s": 2.0, "reject": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The encoder, and for each fine-tune its delta and what the delta stands for, as a folder."""
    made = tmp_path_factory.mktemp("eeg")
    found = {"base": encoder(made / "base")}
    for name in TRAINED:
        found[name] = classifier(found["base"], name, made / name)
        found[f"{name} whole"] = made / f"{name}-whole"
        reconstruct(found[name], found["base"], found[f"{name} whole"])
    return found


@pytest.fixture(scope="module")
def served(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(Backbone.load(folders["base"]), tmp_path_factory.mktemp("store")) as found:
        for name in TRAINED:
            found.upload(name, folders[name])
        yield found


@pytest.fixture
def labelled(serve: Serve, delta_file: Callable[..., Path]) -> Served:
    """A classifier as the base, and a fine-tune whose head is merged with its."""
    found = serve("neuript")
    found.upload("math", delta_file("neuript", 1))
    return found


def expected(folder: Path, signal: np.ndarray, steps: Steps, starts: list[float] | None = None) -> torch.Tensor:
    """Probabilities of every window, by transformers alone."""
    model = NeurIPTForEEGClassification.from_pretrained(folder)
    cut = windows(Recording(signal, RATE, tuple(NAMES), "uV"), steps, starts)
    with torch.inference_mode():
        return torch.softmax(model(**signal_batch(cut.inputs)).logits, 1)


def probabilities(body: dict[str, Any]) -> torch.Tensor:
    return torch.tensor([list(row["probabilities"].values()) for row in body["data"]])


def test_every_window_is_answered_as_the_delta_was_trained(served: Served, folders: dict[str, Path]) -> None:
    body = ok(ask(served, model="left"))
    assert [(row["t0"], row["t1"]) for row in body["data"]] == [(0.5 * n, 0.5 * n + 1) for n in range(7)]
    wanted = expected(folders["left whole"], rows(), TRAINED["left"])
    torch.testing.assert_close(probabilities(body), wanted, atol=1e-5, rtol=0)
    assert [row["label"] for row in body["data"]] == [["rest", "left", "feet"][row.argmax()] for row in wanted]
    mean = dict(zip(["rest", "left", "feet"], wanted.mean(0).tolist(), strict=True))
    assert body["recording"]["probabilities"] == pytest.approx(mean, abs=1e-5)
    assert body["recording"]["label"] == max(mean, key=lambda label: mean[label])


def test_what_was_done_is_said(served: Served) -> None:
    loud = rows()
    loud[0, 250:260] += 1000
    body = ok(ask(served, model="right", signal=loud.tolist(), reject=True, line_freq=25 * 2, reference="average"))
    told = body["preprocessing"]
    assert told["window_s"] == told["stride_s"] == 2.0
    assert told["done"] == [
        "to microvolts from uV",
        "band-pass 0.1 to 30 Hz (Butterworth, order 4, both ways)",
        "referenced to the average of 3 channels",
        "resampled from 100 to 64 Hz",
        "A-law companded (A = 0.25)",
    ], "no notch where the rate is too low for the mains"
    assert told["positions_mm"]["C3"] == pytest.approx([-65.4, -11.6, 64.4], abs=0.05)
    assert [row["t0"] for row in body["data"]] + [row["t0"] for row in told["rejected"]] == [0.0, 2.0]
    assert told["rejected"][0]["reason"] == "over 100 uV"
    left = ok(ask(served, model="left"))
    assert left["preprocessing"]["dropped"] == {"Fp1": "not asked for"} and left["recording"]["channels"] == [
        "C3",
        "O1",
    ]
    assert (left["recording"]["seconds"], left["recording"]["sfreq"], left["recording"]["windows"]) == (4.0, RATE, 7)


@pytest.mark.parametrize("make", [edf_bytes, npy_bytes])
def test_a_file_is_the_same_recording(served: Served, make: Callable[[np.ndarray], bytes]) -> None:
    more = {"sfreq": RATE, "unit": "uV", "ch_names": NAMES} if make is npy_bytes else {}
    found, plain = ok(send(served, make(rows()), model="left", **more)), ok(ask(served, model="left"))
    torch.testing.assert_close(probabilities(found), probabilities(plain), atol=2e-3, rtol=0)
    assert [row["t0"] for row in found["data"]] == [row["t0"] for row in plain["data"]]


def test_what_is_not_as_in_training_is_said(served: Served) -> None:
    same = {"window_s": 2.0, "reference": "recorded", "stride_s": 1.0, "reject": True}
    assert ok(ask(served, model="right", **same))["preprocessing"]["warnings"] == []
    other = {"window_s": 1, "reference": "average", "line_freq": 60}
    for kind in ("classify", "embed"):
        assert ok(ask(served, kind, model="right", **other))["preprocessing"]["warnings"] == [
            "window_s is 1, and the model was trained with 2",
            "reference is 'average', and the model was trained with 'recorded'",
            "line_freq is 60, and the model was trained with none",
        ]
    assert ok(ask(served, "embed", model="base", **other))["preprocessing"]["warnings"] == [], "it says nothing"
    slow = ok(ask(served, model="right", sfreq=40))["preprocessing"]["warnings"]
    assert slow == ["at 40 Hz nothing above 20 Hz is recorded, and up to 30 is read"]


def test_no_window_ends_after_its_recording(served: Served) -> None:
    """A last sample at 64 Hz reaches over it: 3.98 s are 255 of them."""
    short = ok(ask(served, model="left", signal=rows(3.98).tolist()))
    assert short["recording"]["seconds"] == 3.98 and short["data"][-1]["t1"] <= 3.98
    one = ok(ask(served, model="right", signal=rows(1.99).tolist()))
    assert [(row["t0"], row["t1"]) for row in one["data"]] == [(0.0, 1.99)]


def test_a_zero_for_an_o(served: Served) -> None:
    names = ["EEG Fp1-REF", "EEG C3-REF", "EEG 01-REF"]
    message = assert_error(ask(served, model="left", ch_names=names), 422, "invalid_input", "ch_names")
    assert "channel 'EEG 01-REF' is unknown, and O1, which the model reads, is not recorded: is it that?" in message
    message = assert_error(ask(served, model="right", ch_names=names), 422, "invalid_input", "ch_names")
    assert "no position is known for channel 'EEG 01-REF'; did you mean O1" in message


def test_trials_are_recordings_of_their_own(served: Served) -> None:
    trials = np.stack([rows(seed=1), rows(seed=2)])
    body = ok(ask(served, model="right", signal=trials.tolist()))
    assert [(row["index"], row["trial"], row["t0"]) for row in body["data"]] == [
        (0, 0, 0.0),
        (1, 0, 2.0),
        (2, 1, 0.0),
        (3, 1, 2.0),
    ]
    alone = [probabilities(ok(ask(served, model="right", signal=trial.tolist()))) for trial in trials]
    torch.testing.assert_close(probabilities(body), torch.cat(alone), atol=1e-5, rtol=0)


def test_windows_at_events(served: Served, folders: dict[str, Path]) -> None:
    body = ok(ask(served, model="right", onsets=[1.5, 0.25, 3.9]))
    assert [row["t0"] for row in body["data"]] == [1.5, 0.25]
    assert [row["onset"] for row in body["data"]] == [1.5, 0.25]
    rejected = {"onset": 3.9, "t0": 3.90625, "reason": "not within the recording"}
    assert body["preprocessing"]["rejected"] == [rejected]
    assert body["preprocessing"]["warnings"] == ["1 of 3 onsets have no answer: 'rejected' says why"]
    wanted = expected(folders["right whole"], rows(), TRAINED["right"], [1.5, 0.25])
    torch.testing.assert_close(probabilities(body), wanted, atol=1e-5, rtol=0)


def test_positions_of_channels_that_no_system_knows(served: Served) -> None:
    named = {"ch_names": ["C3", "O1", "E7"], "ch_pos_mm": {"E7": [-29.4, 83.9, -7.0]}}
    found = ok(ask(served, model="right", **named))
    assert found["preprocessing"]["positions_mm"]["E7"] == [-29.4, 83.9, -7.0]
    known = {"ch_names": ["C3", "O1", "Fp1"]}
    torch.testing.assert_close(
        probabilities(found), probabilities(ok(ask(served, model="right", **known))), atol=1e-2, rtol=0
    )


def test_half_of_a_delta_and_merges(labelled: Served) -> None:
    signal = {"window_s": 2.0, "reject": False}
    base, half, whole = (
        probabilities(ok(ask(labelled, model=model, **signal))) for model in ("base", "0.5*math", "math")
    )
    assert not torch.allclose(base, half, atol=1e-4) and not torch.allclose(half, whole, atol=1e-4)
    zero = probabilities(ok(ask(labelled, model="0*math", **TWO)))
    torch.testing.assert_close(zero, base, atol=1e-6, rtol=0)


def test_two_subjects_are_merged(served: Served) -> None:
    recipe = {"method": "neuromerging", "terms": [{"delta": "left"}, {"delta": "right"}]}
    body = ok(ask(served, model="base", patch=recipe, head="right"))
    assert set(body["data"][0]["probabilities"]) == {"rest", "right", "feet"} and len(body["data"]) == 2
    assert not torch.allclose(probabilities(body), probabilities(ok(ask(served, model="right"))), atol=1e-4)
    message = assert_error(ask(served, model="neuromerging(left, right)"), 422, "invalid_input", "head")
    assert "'left' and 'right' were trained on other windows or channels" in message


def test_who_was_trained_as_the_base_is_read_so_in_a_merge(tmp_path: Path) -> None:
    """Such a delta says nothing of recordings, and what others say is not about it."""
    base = encoder(tmp_path / "base")
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"preprocessing": TRAINED["right"].to_config()}))
    with serving(Backbone.load(base), tmp_path / "store") as served:
        for name in TRAINED:
            served.upload(name, classifier(base, name, tmp_path / name))
        alone, merged = (ok(ask(served, model=model, head="right")) for model in ("right", "0*left + right"))
        assert [(row["t0"], row["t1"]) for row in merged["data"]] == [(row["t0"], row["t1"]) for row in alone["data"]]
        assert merged["preprocessing"] == alone["preprocessing"]
        torch.testing.assert_close(probabilities(merged), probabilities(alone), atol=1e-5, rtol=0)
        for kind, model in (("classify", "neuromerging(left, right)"), ("embed", "left + right")):
            assert_error(ask(served, kind, model=model), 422, "invalid_input", "head")


def test_vectors(served: Served, folders: dict[str, Path]) -> None:
    body = ok(ask(served, "embed", model="base", **TWO))
    cut = windows(Recording(rows(), RATE, tuple(NAMES), "uV"), Steps(window_seconds=2.0, rejects=False))
    with torch.inference_mode():
        hidden = NeurIPTModel.from_pretrained(folders["base"])(**signal_batch(cut.inputs)).last_hidden_state
    wanted = torch.nn.functional.normalize(hidden.mean((1, 2)), dim=-1)
    found = torch.tensor([row["embedding"] for row in body["data"]])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    packed = ok(send(served, edf_bytes(rows()), "embed", model="left", encoding_format="base64"))
    assert len(base64.b64decode(packed["data"][0]["embedding"])) == 4 * found.shape[1] and len(packed["data"]) == 7


def test_requests_that_share_batches_are_answered_as_alone(served: Served) -> None:
    asked = [(model, seed) for seed in range(6) for model in ("left", "right", "0.3*left", "-right")]

    def one(pair: tuple[str, int]) -> torch.Tensor:
        return probabilities(ok(ask(served, model=pair[0], signal=rows(seed=pair[1]).tolist())))

    alone = list(map(one, asked))
    with ThreadPoolExecutor(8) as threads:
        for found, wanted in zip(threads.map(one, asked), alone, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_nothing_of_the_patient_is_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[object] = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *args, **more: opened.append(args) or real(*args, **more))
    file = edf_bytes(np.tile(rows(), 2000))
    assert PATIENT.encode() in file and len(file) > 4 << 20
    with caplog.at_level(logging.DEBUG):
        answers = [send(served, file, model="left", onsets=[0.0]), send(served, file, model="nobody")]
        answers += [send(served, file, model="left", unit="V"), send(served, file, model="left", sfreq=3)]
    assert [answer.status_code for answer in answers] == [200, 404, 422, 422]
    assert PATIENT not in caplog.text and all(PATIENT not in answer.text for answer in answers)
    assert not opened, "no part of it lay on a disk"
    assert not any(PATIENT.encode() in path.read_bytes() for path in served.store.rglob("*") if path.is_file())


def with_nan() -> list[list[float | None]]:
    found = rows().tolist()
    found[1][7] = float("nan")
    return found


LONG = {"signal": np.zeros((3, 400)).tolist()}
# What is wrong -> what is asked beside a good recording, the field that is named, and what is said.
WRONG: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no unit": ({"unit": None}, "unit", "'unit' is needed"),
    "no rate": ({"sfreq": None}, "sfreq", "'sfreq' is needed"),
    "no names": ({"ch_names": None}, "ch_names", "'ch_names' is needed"),
    "no signal": ({"signal": None}, "signal", "send a signal, or a form with a file"),
    "another unit": ({"unit": "nV"}, "unit", "Input should be 'uV', 'mV' or 'V'"),
    "uV that are V": ({"unit": "V"}, "unit", "as 'uV' it would be EEG"),
    "V that are uV": ({"signal": (rows() * 1e-6).tolist()}, "unit", "as 'V' it would be EEG"),
    "no EEG at all": ({"signal": (rows() * 1e9).tolist()}, "unit", "1e-9 times as much would be EEG"),
    "a rate that is too low": ({"sfreq": 10}, "sfreq", "a rate of 10 Hz is below 40"),
    "a rate of none": ({"sfreq": 0}, "sfreq", "greater than 0"),
    "a rate in words": ({"sfreq": "100"}, "sfreq", "valid number"),
    "a misspelt channel": ({"ch_names": ["Fp1", "C3", "O11"]}, "ch_names", "did you mean O1"),
    "a channel of nobody's": ({"ch_names": ["Fp1", "C3", "E7"]}, "ch_names", "no position is known for channel 'E7'"),
    "a channel twice": ({"ch_names": ["Fp1", "T7", "T3"]}, "ch_names", "channel 'T7' is there twice"),
    "too few names": ({"ch_names": ["Fp1", "C3"]}, "ch_names", "3 channels have 2 names"),
    "no EEG by name": ({"ch_names": ["EMG", "ECG", "EOG"]}, "ch_names", "no channel is EEG by its name"),
    "a name that is empty": ({"ch_names": ["Fp1", "C3", ""]}, "ch_names.2", "at least 1 character"),
    "NaN": ({"signal": with_nan()}, "signal", "channel 'C3' has NaN or infinity at sample 7"),
    "flat": ({"signal": np.full((3, 400), 7.0).tolist()}, "signal", "the recording is flat"),
    "one dimension": ({"signal": [1.0, 2.0]}, "signal", "not the shape [2]"),
    "rows that differ": (
        {"signal": [[1.0, 2.0], [1.0]]},
        "signal",
        "signal[1] has the length 1, and signal[0] 2",
    ),
    "trials that differ": (
        {"signal": [[[1.0]], [[1.0, 2.0]]]},
        "signal",
        "signal[1][0] has the length 2, and signal[0][0] 1",
    ),
    "a number among rows": ({"signal": [[1.0, 2.0], 1.0]}, "signal", "lists and single values are side by side"),
    "words": ({"signal": [["a", "b"]]}, "signal", "no rectangular array of numbers: it holds what is no number"),
    "nothing": ({"signal": []}, "signal", "not the shape [0]"),
    "too short": ({"signal": rows(1.0).tolist()}, "window_s", "the recording has 1 s and a window 2"),
    "a window of none": ({"window_s": 0}, "window_s", "greater than or equal to"),
    "a window of an hour": ({"window_s": 3600}, "window_s", "less than or equal to 120"),
    "a stride of none": ({"stride_s": -1}, "stride_s", "greater than or equal to"),
    "another reference": ({"reference": "ears"}, "reference", "'recorded' or 'average'"),
    "the mains at 500": ({"line_freq": 500}, "line_freq", "less than or equal to 70"),
    "onsets in words": ({"onsets": ["soon"]}, "onsets.0", "valid number"),
    "onsets that are over": ({"onsets": [99.0]}, "onsets", "not within the recording, which has 4 s; the first would"),
    "all too loud": ({"signal": (rows() * 9).tolist(), "reject": True}, "reject", "(over 100 uV)"),
    "a position in two numbers": ({"ch_pos_mm": {"E7": [1, 2]}}, "ch_pos_mm.2", "Field required"),
    "positions in metres": ({"ch_pos_mm": {"O1": [-0.03, -0.11, 0.01]}}, "ch_pos_mm", "in metres it would be"),
    "a position of no channel": ({"ch_pos_mm": {"o1": [-30, -110, 10]}}, "ch_pos_mm", "no channel is called so"),
    "a channel twice, and a list": (
        {"ch_names": ["O1", "C3", "C3"], "model": "left"},
        "ch_names",
        "channel 'C3' is there twice",
    ),
    "a misspelt channel, and a list": (
        {"ch_names": ["Fp1", "C3", "O11"], "model": "left"},
        "ch_names",
        "channel 'O11' is unknown, and O1, which the model reads, is not recorded",
    ),
    "a channel of the list is missing": (
        {"ch_names": ["Fp1", "C3", "P3"], "model": "left"},
        "ch_names",
        "without O1 (not recorded) nothing is left",
    ),
    "a channel of the list is dead": (
        {"signal": [*rows()[:2].tolist(), [7.0] * 400], "model": "left"},
        "ch_names",
        "without O1 (flat) nothing is left",
    ),
    "none of the list": (
        {"ch_names": ["Fp1", "F3", "F4"], "model": "left"},
        "ch_names",
        "C3, O1 is recorded, and no others are read: Fp1, F3, F4 are",
    ),
    "turned": ({"signal": rows().T.tolist()}, "ch_names", "seems to be turned: transpose it"),
    "one sample": ({"signal": rows()[:, :1].tolist()}, "window_s", "the recording has 0.01 s and a window 2"),
    "a rate by another name": ({"sampling_rate": 100}, "sampling_rate", "'sfreq' is meant"),
    "channels by another name": ({"channels": NAMES}, "channels", "'ch_names' is meant"),
    "a field of nobody's": ({"montage": "10-20"}, "montage", "Extra inputs are not permitted"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(served: Served, what: str) -> None:
    changes, param, words = WRONG[what]
    body = {"model": "right", "signal": rows().tolist(), **NUMBERS, **changes}
    content = json.dumps({name: value for name, value in body.items() if value is not None})
    answer = served.post("/v1/eeg/classify", content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 422 and error["type"] == "invalid_request_error", answer.text
    assert words in error["message"] and error["param"] == param, error
    assert "Traceback" not in error["message"] and len(error["message"]) < 400


def test_the_signs_of_micro(served: Served) -> None:
    plain = probabilities(ok(ask(served, model="left")))
    for unit in ("\u00b5V", "\u03bcV"):
        torch.testing.assert_close(probabilities(ok(ask(served, model="left", unit=unit))), plain)


def test_channels_that_are_left_out_are_said(served: Served) -> None:
    """A dead one among others of its lobe, in a list and without one, in a trial and in all."""
    dead = wide_rows()
    dead[WIDE.index("Cz")] = 3
    asked = {"sfreq": RATE, "unit": "uV", "ch_names": list(WIDE)}
    told = ok(ask(served, model="average", signal=dead.tolist(), **asked))["preprocessing"]
    assert told["dropped"]["Cz"] == "flat" and "referenced to the average of 3 channels" in told["done"]
    assert told["warnings"] == ["of the 4 channels that the model was trained on it reads 3: without Cz (flat)"]
    told = ok(ask(served, model="right", signal=dead.tolist(), **asked))["preprocessing"]
    assert told["dropped"] == {"Cz": "flat"} and told["warnings"] == ["Cz is left out: flat"]
    trials = [wide_rows().tolist(), dead.tolist(), wide_rows(seed=9).tolist()]
    body = ok(ask(served, model="right", signal=trials, **asked))
    assert body["preprocessing"]["dropped"] == {"Cz": "flat in trial 1"}
    assert body["preprocessing"]["warnings"] == ["Cz is left out: flat in trial 1"]
    assert set(body["recording"]["channels"]) == set(WIDE)
    assert not ok(ask(served, model="left"))["preprocessing"]["warnings"]


def test_what_a_file_has_beside_is_said(served: Served) -> None:
    """A file that was cut off, another unit, what is no EEG and what has another rate."""
    whole = edf_bytes(rows())
    told = ok(send(served, whole[: -2 * 2 * 3 * RATE - 5], model="left", window_s=0.5))["preprocessing"]
    assert "it has 1 of the 4 s that its header says" in told["warnings"][0]
    told = ok(send(served, edf_bytes(rows(), physical_dimension="Ohm"), model="left", unit="uV"))["preprocessing"]
    assert told["done"][0] == "to microvolts from uV" and "and not in 'Ohm'" in told["warnings"][0]
    others = {"sampling_frequency": (RATE, RATE, 50, 50), "label": ("C3", "O1", "Cz", "ECG")}
    told = ok(send(served, mixed_edf(**others), model="left"))["preprocessing"]
    assert told["dropped"] == {"Cz": "recorded at 50 Hz", "ECG": "no EEG by its name"}
    slow = mixed_edf(**others | {"label": ("C3", "C4", "O1", "Cz")})
    message = assert_error(send(served, slow, model="left"), 422, "invalid_input", "ch_names")
    assert "without O1 (recorded at 50 Hz)" in message


def test_a_unit_that_is_not_the_files(served: Served) -> None:
    """It is the one that is wrong, and named."""
    message = assert_error(send(served, edf_bytes(rows()), model="left", unit="V"), 422, "invalid_input", "unit")
    assert "where the unit is 'V'" in message and "as 'uV' it would be EEG" in message


@pytest.mark.parametrize("name", ["average", "pairs"])
def test_as_braindecode_has_the_servers_answers(served: Served, folders: dict[str, Path], name: str) -> None:
    """On one recording, of which the module is given what it reads in an order of its own."""
    steps, found = TRAINED[name], wide_rows()
    body = ok(send(served, edf_bytes(found, WIDE), model=name))
    read = body["recording"]["channels"]
    assert len(read) == 4 and len(body["data"]) == 8
    model = NeurIPTForEEGClassification.from_pretrained(folders[f"{name} whole"]).eval()
    picked = [channel for channel in WIDE if channel in str(steps.channels or steps.pairs)]
    info = [{"ch_name": f"EEG {channel}-REF", "loc": [np.nan] * 12} for channel in picked]
    module = as_braindecode(model, chs_info=info, sfreq=64, input_window_seconds=steps.window_seconds)
    written = edf.read(edf_bytes(found, WIDE)).recording
    raw = 1e-6 * written.signal[[WIDE.index(channel) for channel in picked]]
    cut = module.prepared(raw, RATE).reshape(len(picked), -1, module.n_times).swapaxes(0, 1)
    with torch.inference_mode():
        wanted = torch.softmax(module(torch.from_numpy(cut).float()), 1)
    torch.testing.assert_close(probabilities(body), wanted, atol=1e-5, rtol=0)


FILES: dict[str, tuple[bytes, dict[str, Any], str | None, str]] = {
    "nothing": (b"", {}, "file", "this is no EDF or BDF file"),
    "a text": (b"hello", {}, "file", "this is no EDF or BDF file"),
    "a header alone": (edf_bytes(rows())[:256], {}, "file", "the file is cut off in its header"),
    "a header cut off": (edf_bytes(rows())[:300], {}, "file", "the file is cut off in its header"),
    "a pickle": (b"\x80\x04K\x01.", {}, "file", "this is no EDF or BDF file"),
    "a picture": (b"\x89PNG\r\n\x1a\n", {}, "file", "but a PNG picture"),
    "a .mat file": (b"MATLAB 5.0 MAT-file", {}, "file", "scipy.io.loadmat"),
    "an npz with all of it": (b"PK\x03\x04....", NUMBERS, "file", "np.load('x.npz')"),
    "an EDF with a rate": (edf_bytes(rows()), {"sfreq": 100}, "sfreq", "leave 'sfreq' out"),
    "an EDF with names": (edf_bytes(rows()), {"ch_names": NAMES}, "ch_names", "leave 'ch_names' out"),
    "an EDF and a signal": (edf_bytes(rows()), {"signal": [[1.0]]}, "signal", "leave the signal out"),
    "an EDF in ohms": (edf_bytes(rows(), physical_dimension="Ohm"), {}, "unit", "'Ohm' by its file"),
    "an EDF in V by mistake": (edf_bytes(rows(), physical_dimension="V"), {}, "unit", "which no EEG does"),
    "an npy without a unit": (npy_bytes(rows()), {"sfreq": 100, "ch_names": NAMES}, "unit", "'unit' is needed"),
    "an npy of objects": (npy_bytes(np.array([{}, {}])), NUMBERS, "file", "which are no numbers"),
    "an npy of words": (npy_bytes(np.array([["a", "b"]])), NUMBERS, "file", "which are no numbers"),
    "an npy cut off": (npy_bytes(rows())[:-9], NUMBERS, "file", "are not the bytes that follow"),
    "an npy header alone": (npy_bytes(rows())[:40], NUMBERS, "file", "no .npy file that can be read"),
    "an npy of one axis": (npy_bytes(rows()[0]), NUMBERS, "signal", "not the shape [400]"),
}


@pytest.mark.parametrize("what", FILES)
def test_what_is_wrong_with_a_file_is_said(served: Served, what: str) -> None:
    file, body, param, words = FILES[what]
    message = assert_error(send(served, file, model="right", **body), 422, "invalid_input", param)
    assert words in message, message


def test_an_npy_that_claims_a_terabyte(served: Served) -> None:
    real = npy_bytes(rows())
    claimed = real.replace(b"(3, 400)", b"(3, 9**9)")[: len(real)].replace(b"9**9", b"9999999999999")
    assert_error(send(served, claimed, model="right", **NUMBERS), 422, "invalid_input", "file")


def test_forms_of_other_parts(served: Served) -> None:
    asked = (None, json.dumps({"model": "right"}), "application/json")
    file = ("x.edf", edf_bytes(rows()), "application/octet-stream")
    for parts in ({"file": file}, {"request": asked}, {"request": asked, "edf": file}, {"request": file, "file": file}):
        answer = served.client.post("/v1/eeg/classify", files=parts)
        assert_error(answer, 422, "invalid_input", "file")
    texts = {"request": asked, "file": (None, "x.edf")}
    answer = served.client.post("/v1/eeg/classify", files=texts)
    assert "with curl it is -F file=@NAME" in assert_error(answer, 422, "invalid_input", "file")
    doubled = [("request", asked), ("request", asked), ("file", file)]
    assert_error(served.client.post("/v1/eeg/classify", files=doubled), 422, "invalid_input", "file")
    cut = {"request": (None, '{"model": "ties(left, right'), "file": file}
    answer = served.client.post("/v1/eeg/classify", files=cut)
    assert "-F cuts at ';'" in assert_error(answer, 422, "invalid_input", "request")
    nonsense = {"request": (None, "{nonsense"), "file": file}
    assert "the body is not JSON" in assert_error(
        served.client.post("/v1/eeg/classify", files=nonsense), 422, "invalid_request"
    )
    broken = served.client.post(
        "/v1/eeg/classify", content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data"}
    )
    assert "the form cannot be read" in assert_error(broken, 422, "invalid_input", "file")
    twice = {"request": (None, '{"model": "right", "model": "left"}'), "file": file}
    assert "'model' is given twice" in assert_error(
        served.client.post("/v1/eeg/classify", files=twice), 422, "invalid_request"
    )
    plain = served.client.post("/v1/eeg/classify", content=b"x", headers={"content-type": "text/plain"})
    assert "send application/json or multipart/form-data" in assert_error(plain, 422, "invalid_request", "body")


def test_recordings_have_a_bound_of_their_own(serve: Serve, folders: dict[str, Path]) -> None:
    served = serve(Backbone.load(folders["base"]), max_body_bytes=1000, max_recording_bytes=20_000)
    assert ok(send(served, edf_bytes(rows()), "embed", model="base", **TWO))["data"]
    assert_error(send(served, edf_bytes(np.tile(rows(), 20)), "embed", model="base", **TWO), 413, "body_too_large")


def test_a_base_that_reads_no_recordings(vit: Served) -> None:
    assert "does not read recordings" in assert_error(ask(vit, model="base"), 400, "unsupported_task", "model")


def test_a_base_without_a_head(served: Served) -> None:
    assert_error(ask(served, model="base", **TWO), 422, "ambiguous_head", "head")


def test_recordings_are_not_for_the_other_routes(labelled: Served) -> None:
    answer = labelled.post("/v1/classify", {"model": "math", "input": "the cat"})
    assert "send them to /v1/eeg" in assert_error(answer, 422, "invalid_input", "input")


def test_more_windows_than_an_answer_has(labelled: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"model": "math", "window_s": 1, "stride_s": 0.125, "reject": False}
    monkeypatch.setattr("patchbay_server.eeg.MAX_INPUTS", 10)
    message = assert_error(ask(labelled, **asked), 422, "invalid_input", "stride_s")
    assert "25 windows are more than 10" in message
    monkeypatch.setattr("patchbay.models.neuript.preprocess.MOST_SAMPLES", 4000)
    message = assert_error(ask(labelled, **asked), 422, "invalid_input", "stride_s")
    assert "25 windows of 3 channels and 64 samples are too many to hold" in message


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"window_seconds": 1e9}, "preprocessing.window_seconds: Input should be less than or equal to 120"),
        ({"band_hz": [30, 1]}, "a band from 30 to 1 Hz is none"),
        ({"run": "this"}, "preprocessing.run"),
    ],
)
def test_what_a_delta_says_of_itself_is_checked(
    served: Served, folders: dict[str, Path], tmp_path: Path, told: dict[str, Any], words: str
) -> None:
    """It came from outside."""
    odd = tmp_path / "odd"
    shutil.copytree(folders["left"].parent, odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"preprocessing": told}))
    served.upload("odd", pico.delta_file(folders["base"], odd, tmp_path / "delta", density=0.3))
    assert words in assert_error(ask(served, model="odd"), 422, "invalid_input", "preprocessing")
