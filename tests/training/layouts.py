"""Small files that lie and are written as public data sets are: each function fills a folder with one of them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import edfio
import numpy as np
from scipy import io
from tests.training.recordings import Mark, signal

from patchbay.models.neuript.montage import SEED_V_17

ELECTRODES_17 = (
    *("Fp1", "F7", "T3", "T5", "O1", "Fp2", "F8", "T4", "T6", "O2"),
    *("C3", "Cz", "C4", "F3", "P3", "F4", "P4"),
)


def write_edf(
    file: Path, names: Sequence[str], seconds: float, rate: int, events: Sequence[Mark] = (), *, seed: int = 0
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = signal(seconds, rate, len(names), seed) if names else []
    edfio.Edf(
        [
            edfio.EdfSignal(row, rate, label=name, physical_dimension="uV", physical_range=(-400, 400))
            for row, name in zip(rows, names, strict=True)
        ],
        annotations=[edfio.EdfAnnotation(*event) for event in events],
    ).write(file)


def write_gdf(
    file: Path,
    names: Sequence[str],
    seconds: int,
    rate: int,
    events: Sequence[tuple[float, int]],
    gap: tuple[int, int] = (0, 0),
) -> None:
    """Version 1.25, in records of a second; `events`: when, in seconds, and their types. `gap`: from which sample to
    which all channels have the lowest number, as between runs.
    """
    count = len(names)
    parts = [b"GDF 1.25", b"X X".ljust(80), b"".ljust(80), b"2005010112000000"]
    parts += [struct.pack("<q", 256 * (1 + count)), bytes(24 + 20), struct.pack("<qIII", seconds, 1, 1, count)]
    parts += [name.encode().ljust(16) for name in names] + [b"".ljust(80 * count), b"uV".ljust(8) * count]
    parts += [struct.pack("<d", low) * count for low in (-3276.8, 3276.7)]
    parts += [struct.pack("<q", low) * count for low in (-32768, 32767)]
    parts += [b"".ljust(80 * count), struct.pack("<i", rate) * count, struct.pack("<i", 3) * count, bytes(32 * count)]
    counts = np.round(signal(seconds, rate, count, 1) * 10).astype("<i2")
    counts[:, gap[0] : gap[1]] = -32768
    parts += [counts.reshape(count, seconds, rate).transpose(1, 0, 2).tobytes()]
    places = np.array([round(onset * rate) + 1 for onset, _ in events], "<u4")
    kinds = np.array([kind for _, kind in events], "<u2")
    parts += [b"\x01", rate.to_bytes(3, "little"), struct.pack("<I", len(events)), places.tobytes(), kinds.tobytes()]
    file.write_bytes(b"".join(parts))


def write_cnt(file: Path, names: Sequence[str], seconds: int, rate: int) -> None:
    """Neuroscan's, of 32 bits and without events; a count is .1 microvolts."""
    count = len(names)
    counts = np.round(signal(seconds, rate, count, 2) * 10).astype("<i4").T
    first = 900 + 75 * count
    header = bytearray(first)
    struct.pack_into("<H", header, 370, count)
    struct.pack_into("<H", header, 376, rate)
    struct.pack_into("<i", header, 864, len(counts))
    struct.pack_into("<i", header, 886, first + counts.nbytes)
    for number, name in enumerate(names):
        place = 900 + 75 * number
        struct.pack_into("<10s", header, place, name.encode())
        struct.pack_into("<ff", header, place + 19, np.cos(number), np.sin(number))
        struct.pack_into("<f", header, place + 59, 20.48)  # sensitivity, in 204.8 counts a microvolt
        struct.pack_into("<f", header, place + 71, 1.0)
    file.write_bytes(bytes(header) + counts.tobytes() + struct.pack("<Bll", 1, 0, 0))


def write_mental_arithmetic(folder: Path) -> None:
    names = [*(f"EEG {name}" for name in ELECTRODES_17), "EEG A2-A1", "ECG ECG"]
    for subject in (0, 27, 28, 31, 32, 35):
        for task in (1, 2):
            write_edf(folder / f"Subject{subject:02}_{task}.edf", names, 11, 500, seed=subject)


def write_mumtaz(folder: Path) -> None:
    names = [*(f"EEG {name}-LE" for name in ELECTRODES_17), "EEG A2-A1", "EEG 23A-23R"]
    files = [f"H S{number} EC" for number in range(1, 28)] + ["H S1 EO", "6921143_H S28 EO"]
    files += [f"MDD S{number} EC" for number in range(1, 34)] + ["MDD S34  EO", "MDD S34 TASK"]
    for number, name in enumerate(files):
        write_edf(folder / f"{name}.edf", names, 6, 256, seed=number)


def write_p300(folder: Path) -> None:
    names = [*ELECTRODES_17, "POz", "EARL", "VEOGL"]
    flashes = ["AGMSY5", "ABCDEF", "YZ1234", "56789#", "FLRX4#", "BHNTZ6"]
    for subject in (1, 3, 8, 9, 11):
        for run, letter in ((1, "A"), (2, "#"), (3, "_")):
            times = (0.5, *(1.0 + 0.15 * number for number in range(5)))  # the first is too early for a window
            events = [(0.0, 0.0, f"#Tgt{letter}_1"), (0.1, 0.0, "#start"), (3.9, 0.0, "#counted20of20")]
            events += [(time, 0.1, text) for time, text in zip(times, flashes, strict=True)]
            write_edf(folder / "files" / f"s{subject:02}" / f"rc{run:02}.edf", names, 4, 2048, events, seed=run)


def write_sleep(folder: Path) -> None:
    texts = [*(f"Sleep stage {stage}" for stage in "W1234R?"), "Movement time"]
    events = [(0.0, 60.0, texts[0]), *((30.0 + 30 * number, 30.0, texts[number]) for number in range(1, 8))]
    nights = [f"SC4{subject:02}1E0" for subject in range(5)] + ["SC4002E0", "ST7011J0"]
    for number, night in enumerate(nights):
        names = ["EEG Fpz-Cz", "EEG Pz-Oz", "EOG horizontal", "Temp rectal", "Event marker"]
        write_edf(folder / night[:2] / f"{night}-PSG.edf", names, 290, 100, seed=number)
        write_edf(folder / night[:2] / f"{night[:7]}C-Hypnogram.edf", [], 0, 0, events)


def write_seed_v(folder: Path) -> None:
    """The first trials, in 64 Hz."""
    names = [*(name.upper() for name in SEED_V_17), "M1", "VEO", "CB1"]
    for name, seconds in (("1_1", 960), ("9_2", 960), ("11_3", 980), ("16_1", 100)):
        write_cnt(folder / f"{name}_20180804.cnt", names, seconds, 64)


def write_bcic(folder: Path) -> None:
    named = {0: "EEG-Fz", 7: "EEG-C3", 9: "EEG-Cz", 11: "EEG-C4", 19: "EEG-Pz"}
    names = [*(named.get(number, "EEG") for number in range(22)), "EOG-left", "EOG-central", "EOG-right"]
    for name in ("A01T", "A01E", "A02E", "A05T", "A06T", "A07T", "A08T", "A09T"):
        kinds = [783] * 4 if name.endswith("E") else [770, 769, 771, 772]
        trials = [(6.0 * number, 768) for number in range(4)]
        cues = [(6.0 * number + 2, kind) for number, kind in enumerate(kinds)]
        write_gdf(folder / f"{name}.gdf", names, 25, 250, sorted(trials + cues))
    (folder / "true_labels").mkdir()
    io.savemat(folder / "true_labels" / "A01E.mat", {"classlabel": np.array([[4], [3], [2], [1]])})


def write_tuab(folder: Path) -> None:
    names = [*(f"EEG {name.upper()}-REF" for name in ELECTRODES_17), "EEG ROC-REF", "EEG EKG1-REF", "PHOTIC-REF"]
    kinds = ("abnormal", "normal", "abnormal", "normal", "normal")
    recordings = [f"train/{kind}/01_tcp_ar/{letter * 8}" for kind, letter in zip(kinds, "abcde", strict=True)]
    recordings += ["eval/abnormal/01_tcp_ar/ffffffff", "eval/normal/02_tcp_le/gggggggg"]
    for number, name in enumerate(recordings):
        write_edf(folder / "edf" / f"{name}_s001_t000.edf", names, 25, 250, seed=number)


def write_tuev(folder: Path) -> None:
    names = [*(f"EEG {name.upper()}-REF" for name in ELECTRODES_17), "EEG T1-REF", "EEG EKG1-REF"]
    recordings = [f"train/{letter * 8}/{letter * 8}_00000001" for letter in "abcde"] + ["eval/000/bckg_000_a_"]
    for number, name in enumerate(recordings):
        write_edf(folder / "edf" / f"{name}.edf", names, 20, 250, seed=number)
        lines = [f"{code},{2 + 2 * code:.1f},{3 + 2 * code:.1f},{code}" for code in range(1, 7)]
        # At 4 s as many of another class, at 14 s more of the class that is there, and one too early for a window.
        lines += ["7,4.0,5.0,6", "7,14.0,15.0,1", "8,14.0,15.0,6", "0,1.0,2.0,6"]
        (folder / "edf" / f"{name}.rec").write_text("\n".join([*lines, ""]))


WRITERS: Mapping[str, Callable[[Path], None]] = {
    "mental-arithmetic": write_mental_arithmetic,
    "mumtaz2016": write_mumtaz,
    "physionet-p300": write_p300,
    "sleep-edfx": write_sleep,
    "seed-v": write_seed_v,
    "bcic-iv-2a": write_bcic,
    "tuab": write_tuab,
    "tuev": write_tuev,
}
