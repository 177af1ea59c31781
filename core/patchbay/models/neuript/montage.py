"""Where channels are: names as recordings write them, positions in millimetres, and the lobe that each belongs to.

Positions (x right, y front, z up) are those of the 10-05 system on an average head; electrodes.json holds them. Knows
nothing of signals.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

import numpy as np
import torch

from patchbay.errors import InputError
from patchbay.models.neuript.config import NUM_LOBES

Position = tuple[float, float, float]
# The channels that the paper trains on, in its order. Its code has Fp2-F3 for Fp1-F3, which its figure has not.
PAPER_20 = (
    *("Fp1-F7", "F7-T3", "T3-T5", "T5-O1", "Fp2-F8", "F8-T4", "T4-T6", "T6-O2"),
    *("T3-C3", "C3-Cz", "Cz-C4", "C4-T4"),
    *("Fp1-F3", "F3-C3", "C3-P3", "P3-O1", "Fp2-F4", "F4-C4", "C4-P4", "P4-O2"),
)
PAPER_22 = (*PAPER_20[:8], "A1-T3", *PAPER_20[8:12], "T4-A2", *PAPER_20[12:])
BCIC_16 = (
    *("C5-C1", "C3-Cz", "Cz-C4", "C2-C6", "Fz-C5", "C5-P1", "CP3-POz", "Fz-C1"),
    *("C1-Pz", "CP1-POz", "Fz-C2", "C2-Pz", "CP2-POz", "Fz-C6", "C6-P2", "CP4-POz"),
)
SLEEP_2 = ("Fpz-Cz", "Pz-Oz")
SEED_V_17 = (
    *("Fp1", "Fp2", "F7", "F3", "F4", "F8", "T7", "C3", "Cz"),
    *("C4", "T8", "P7", "P3", "P4", "P8", "O1", "O2"),
)
_OLD_NAMES = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
_REFERENCES = {"REF", "LE", "AR", "AV", "AVG", "CAR", "A1", "A2", "A1A2", "A12", "M1", "M2", "M1M2", "LM", "RM"}
_SUGGESTED = 3


class Lobe(IntEnum):
    """The slots of the head's input, in their order."""

    FRONTAL = 0
    PARIETAL = 1  # with the central ones
    OCCIPITAL = 2
    TEMPORAL_LEFT = 3
    TEMPORAL_RIGHT = 4


# Of the twenty (and two) bipolar channels, by the authors' code, where two of them are in two lobes.
_PAPER_LOBES: Mapping[Lobe, str] = {
    Lobe.FRONTAL: "Fp1-F7 Fp2-F8 Fp1-F3 Fp2-F4",
    Lobe.PARIETAL: "T3-C3 C3-Cz Cz-C4 C4-T4 F3-C3 C3-P3 F4-C4 C4-P4",
    Lobe.OCCIPITAL: "T5-O1 T6-O2 P3-O1 P4-O2",
    Lobe.TEMPORAL_LEFT: "F7-T3 T3-T5 T3-C3 A1-T3",
    Lobe.TEMPORAL_RIGHT: "F8-T4 T4-T6 C4-T4 T4-A2",
}


@dataclass(frozen=True, slots=True)
class Channel:
    """`name` as the 10-05 system writes it; `lobes` has one, or two where overlaps were asked for."""

    name: str
    position: Position
    lobes: tuple[Lobe, ...]


@dataclass(frozen=True, slots=True)
class Montage:
    """The channels of a recording, in its order."""

    channels: tuple[Channel, ...]

    @classmethod
    def of(
        cls, names: Sequence[str], positions: Mapping[str, Position] | None = None, *, overlapping: bool = False
    ) -> Montage:
        """`positions`, in millimetres, come before those of the system, and give one to a name that it does not have.

        `overlapping`: T3-C3 and C4-T4 are in two lobes, as in the authors' code. Raises InputError for a name without a
        position, and for two channels with one name.
        """
        own = positions or {}
        channels = tuple(find_channel(name, own.get(name), overlapping=overlapping) for name in names)
        known = [channel.name for channel in channels]
        for name, channel in zip(names, channels, strict=True):
            if known.count(channel.name) > 1:
                raise InputError(f"channel {name!r} is there twice, as {channel.name}: keep one", param="ch_names")
        return cls(channels)

    @property
    def positions(self) -> torch.Tensor:
        """fp32 [D, 3], in millimetres."""
        return torch.tensor([channel.position for channel in self.channels]).reshape(-1, 3)

    @property
    def lobes(self) -> torch.Tensor:
        """bool [D, 5]: which lobes each channel is in."""
        found = torch.zeros(len(self.channels), NUM_LOBES, dtype=torch.bool)
        for row, channel in zip(found, self.channels, strict=True):
            row[list(channel.lobes)] = True
        return found


def find_channel(name: str, position: Position | None = None, *, overlapping: bool = False) -> Channel:
    """What a recording calls a channel: `Fp1`, `EEG FP1-REF`, `Fc5.`, `T3` for T7, `EEG Fpz-Cz` for a pair.

    A pair is where its electrodes' midpoint is; which of them is which is lost. Raises InputError, with near names.
    """
    pair = electrodes_of(name)
    if position is None and pair is None:
        near = _near(name)
        meant = " or ".join(_by_upper_case()[one] for one in near)
        hint = f"; did you mean {meant}?" if near else "."
        raise InputError(f"no position is known for channel {name!r}{hint} Give it in ch_pos_mm", param="ch_names")
    written = _bare(name) if pair is None else "-".join(pair)
    where = position or midpoint(pair or ())
    return Channel(written, where, _lobes(written, pair, where, overlapping=overlapping))


def spelling(name: str) -> str:
    """What is written of the electrode: without `EEG`, dots and the reference."""
    parts = _bare(name).split("-")
    return "-".join(parts[:1] if _has_reference(parts) else parts).strip()


def reference_of(name: str) -> str | None:
    """`M2` of `C3-M2`, in upper case; None where a name says none, or is of two electrodes such as Fp1-F7."""
    parts = _bare(name).split("-")
    return _plain(parts[1]) if _has_reference(parts) else None


def _near(name: str) -> list[str]:
    """The system's, in upper case; a zero may stand for an O."""
    written = spelling(name).upper()
    meant = "O" + written[1:] if written.startswith("0") else written
    return difflib.get_close_matches(meant, _by_upper_case(), _SUGGESTED, 0.5)


def _has_reference(parts: Sequence[str]) -> bool:
    return len(parts) == 2 and _plain(parts[1]) in _REFERENCES


def _plain(reference: str) -> str:
    return re.sub("[^A-Z0-9]", "", reference.upper())


def electrodes_of(name: str) -> tuple[str, ...] | None:
    """One electrode, or two of a bipolar channel; None where one of them is none of the system's."""
    parts = _bare(name).split("-")
    found = tuple(_by_upper_case().get(part.strip().upper(), "") for part in parts)
    if len(found) == 2 and "-".join(found) in _paper_lobes():
        return found
    if _has_reference(parts):
        found = found[:1]
    return found if all(found) and len(found) <= 2 and len(set(found)) == len(found) else None


def _bare(name: str) -> str:
    """Without what says that it is EEG, and the dots that fill PhysioNet's names."""
    return re.sub(r"^\s*EEG[\s_:]+", "", name, flags=re.IGNORECASE).strip().rstrip(".").strip()


@cache
def electrode_positions() -> Mapping[str, Position]:
    """Name -> millimetres, in the 10-05 system and two names of the 10-20 system more."""
    text = (Path(__file__).parent / "electrodes.json").read_text("utf-8")
    return {name: (x, y, z) for name, (x, y, z) in json.loads(text).items()}


@cache
def _by_upper_case() -> Mapping[str, str]:
    return {name.upper(): _OLD_NAMES.get(name, name) for name in electrode_positions()}


def midpoint(electrodes: Sequence[str], own: Mapping[str, Position] | None = None) -> Position:
    """Of the system's electrodes; `own` positions come before the system's."""
    known = {**electrode_positions(), **own} if own else electrode_positions()
    x, y, z = np.mean([known[name] for name in electrodes], axis=0).tolist()
    return x, y, z


@cache
def _paper_lobes() -> Mapping[str, tuple[Lobe, ...]]:
    """Pair, with today's names -> its lobes."""
    found: dict[str, tuple[Lobe, ...]] = {}
    for lobe, pairs in _PAPER_LOBES.items():
        for pair in pairs.split():
            name = "-".join(_OLD_NAMES.get(part, part) for part in pair.split("-"))
            found[name] = (*found.get(name, ()), lobe)
    return found


def _lobes(name: str, pair: Sequence[str] | None, where: Position, *, overlapping: bool) -> tuple[Lobe, ...]:
    official = _paper_lobes().get(name, ())
    if len(official) == 1 or (official and overlapping):
        return official
    own = _by_name(pair[0]) if pair is not None and len(pair) == 1 else None
    return (own if own is not None else _nearest(where, official or tuple(Lobe)),)


def _by_name(electrode: str) -> Lobe | None:
    """Of the 10-10 system: by its letters, and by its side over the temples. None for one in between."""
    found = re.fullmatch(r"([A-Z][A-Zp]?)(z|[0-9]+)", electrode)
    if found is None:
        return None
    letters, number = found.groups()
    if letters in ("FT", "T", "TP") or (letters == "P" and number in ("7", "8", "9", "10")):
        return Lobe.TEMPORAL_LEFT if int(number) % 2 else Lobe.TEMPORAL_RIGHT
    named = {"Fp": Lobe.FRONTAL, "AF": Lobe.FRONTAL, "F": Lobe.FRONTAL, "FC": Lobe.FRONTAL}
    named |= {"C": Lobe.PARIETAL, "CP": Lobe.PARIETAL, "P": Lobe.PARIETAL}
    named |= {"PO": Lobe.OCCIPITAL, "O": Lobe.OCCIPITAL, "I": Lobe.OCCIPITAL}
    return named.get(letters)


def _nearest(where: Position, among: Sequence[Lobe]) -> Lobe:
    return min(among, key=lambda lobe: float(np.linalg.norm(np.subtract(where, _centres()[lobe]))))


@cache
def _centres() -> Mapping[Lobe, Position]:
    """The mean position of the electrodes that a lobe has by name."""
    inside: dict[Lobe, list[str]] = {lobe: [] for lobe in Lobe}
    for electrode in electrode_positions():
        lobe = _by_name(electrode)
        if lobe is not None and electrode not in _OLD_NAMES:
            inside[lobe].append(electrode)
    return {lobe: midpoint(electrodes) for lobe, electrodes in inside.items()}
