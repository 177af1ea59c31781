"""Recordings in a folder, whatever they are written in. Knows nothing of models and of labels."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patchbay.errors import InputError
from patchbay.models.neuript import edf
from patchbay.models.neuript.edf import Event
from patchbay.models.neuript.recording import Recording
from patchbay.training import by_mne

EDF_ENDINGS = (".edf", ".bdf")
ENDINGS = (*EDF_ENDINGS, ".npz", *by_mne.ENDINGS)
FIELDS = ("signal", "rate", "names", "unit")
MAX_NPZ_BYTES = 8 << 30
SHOWN = 3  # other files, in a message


@dataclass(frozen=True, slots=True)
class Opened:
    """`events` are the file's own annotations, none where its kind has none."""

    recording: Recording
    events: tuple[Event, ...] = ()


def files_in(folder: Path) -> list[Path]:
    """Every recording below the folder, by name. Raises InputError where there is none."""
    if not folder.is_dir():
        what = f"{folder} is a file: give the folder it is in" if folder.exists() else f"there is no folder {folder}"
        raise InputError(what, param="data")
    there = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [path for path in there if path.name.lower().endswith(ENDINGS)]
    if not found:
        lies = ", ".join(path.name for path in there[:SHOWN]) + (", ..." if len(there) > SHOWN else "")
        what = f"has {lies} and no recording" if there else "is empty"
        raise InputError(f"{folder} {what}: {', '.join(ENDINGS)} are read", param="data")
    return found


def load(path: Path) -> Opened:
    """An EDF or BDF file; an .npz with `signal` [channels, samples], `rate`, `names` and `unit`; what else MNE reads,
    where it is installed.

    Raises InputError, which names the file.
    """
    try:
        if path.suffix.lower() in EDF_ENDINGS:
            found = edf.read(path)
            return Opened(found.recording, found.events)
        if path.suffix.lower() == ".npz":
            return Opened(_from_npz(path))
        return Opened(*by_mne.read(path))
    except InputError as error:
        raise InputError(f"{path}: {error.message}", param=error.param) from error


def _from_npz(path: Path) -> Recording:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_NPZ_BYTES:
                raise InputError(f"it holds more than {MAX_NPZ_BYTES:,} bytes", param="data")
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in FIELDS if name not in arrays]
            if missing:
                raise InputError(f"it has no {missing[0]!r}: signal, rate, names and unit are read", param="data")
            signal, rate, names, unit = (arrays[name] for name in FIELDS)
            return Recording(
                signal.astype(np.float64), float(rate), tuple(map(str, names.reshape(-1))), str(unit.reshape(-1)[0])
            )
    except InputError:
        raise
    except Exception as error:  # whatever an archive's bytes provoke in numpy
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"this is no .npz that can be read: {reason}", param="data") from error
