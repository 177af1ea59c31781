"""Which of a recording's channels a model reads, and what is made of them: dead ones left out, a reference, pairs.

All of it is the same for every sample: of unit vectors in place of signals it gives the matrix that does it. Knows
nothing of time.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from patchbay.errors import InputError
from patchbay.models.neuript.montage import Lobe, Montage, Position, electrodes_of, find_channel, midpoint, spelling
from patchbay.models.neuript.recording import DEAD_UV, Signal, is_eeg, listed
from patchbay.models.neuript.steps import Steps

Dropped = dict[str, str]  # channel -> why
FLAT, NOT_RECORDED = "flat", "not recorded"
NOT_EEG, NOT_ASKED = "no EEG by its name", "not asked for"
UNKNOWN = "not asked for, and no name of the 10-05 system"
ALIKE, SAME_AS_AVERAGE = "its electrodes do not differ", "it does not differ from the average"
IN_NO_PAIR = "in no pair that is read"
_CLOSE = 0.6  # of 1: a name that may be another one misspelt
_ALIKE = str.maketrans("0IL", "O11")


def system_name(name: str) -> str:
    """As the 10-05 system writes it, `FP1-REF` as Fp1; or as it is where the system has no such name."""
    electrodes = electrodes_of(name)
    return name if electrodes is None else "-".join(electrodes)


def chosen(
    signal: Signal, names: Sequence[str], own: Mapping[str, Position], steps: Steps, dropped: Dropped
) -> tuple[Signal, list[str]]:
    """The rows that are EEG and that the steps list, in their order; `dropped` learns of the others.

    Raises InputError for a channel that is there twice, where none is left, and, with no list, for a name without a
    place.
    """
    dropped |= {name: NOT_EEG for name in names if not is_eeg(name)}
    there: dict[str, int] = {}
    for number, name in enumerate(names):
        known = system_name(name)
        if name not in dropped and there.setdefault(known, number) != number:
            raise InputError(
                f"channel {known!r} is there twice, as {names[there[known]]} and {name}: keep one", param="ch_names"
            )
    if not there:
        raise InputError(f"no channel is EEG by its name: they are {listed(names)}", param="ch_names")
    wanted = _wanted(there, names, own, steps, dropped)
    rows = [there[name] for name in wanted]
    return signal[rows], [names[row] for row in rows]


def _wanted(
    there: Mapping[str, int], names: Sequence[str], own: Mapping[str, Position], steps: Steps, dropped: Dropped
) -> list[str]:
    """Of the names in `there`, which are the system's."""
    if steps.channels is None:
        for row in there.values():
            find_channel(names[row], own.get(names[row]))
        return _in_pairs(there, names, steps, dropped)
    listed_names = {system_name(name): name for name in steps.channels}
    for known, row in there.items():
        if known not in listed_names:
            dropped[names[row]] = UNKNOWN if electrodes_of(names[row]) is None else NOT_ASKED
    lacking = [known for known in listed_names if known not in there]
    said = {system_name(name) for name in dropped}
    dropped |= {listed_names[known]: NOT_RECORDED for known in lacking if known not in said}
    found = [known for known in listed_names if known in there]
    if not found:
        raise InputError(
            f"none of the channels {listed(steps.channels)} is recorded, and no others are read: "
            f"{listed([names[row] for row in there.values()])} are",
            param="ch_names",
        )
    return found


def _in_pairs(there: Mapping[str, int], names: Sequence[str], steps: Steps, dropped: Dropped) -> list[str]:
    """Those that a pair needs, where pairs are read; all that the average is of, too."""
    if steps.pairs is None or steps.reference == "average":
        return list(there)
    needed = {part for pair in steps.pairs for part in (system_name(pair), *(electrodes_of(pair) or ()))}
    dropped |= {names[row]: IN_NO_PAIR for known, row in there.items() if known not in needed}
    found = [known for known in there if known in needed]
    if not found:
        raise InputError(
            f"none of the bipolar channels can be made: their electrodes are not there, {listed(names)} are",
            param="ch_names",
        )
    return found


def without_flat(signal: Signal, names: Sequence[str], dropped: Dropped, why: str = FLAT) -> tuple[Signal, list[str]]:
    """Of a filtered signal in microvolts. Raises InputError where all channels are flat."""
    flat = np.ptp(signal, 1) < DEAD_UV
    dropped |= {name: why for name, is_flat in zip(names, flat, strict=True) if is_flat}
    if flat.all():
        said = "every channel has one value" if why == FLAT else f"of every channel {why}; are they copies of one?"
        raise InputError(f"the recording is flat: {said} ({listed(names)})", param="signal")
    return signal[~flat], [name for name, is_flat in zip(names, flat, strict=True) if not is_flat]


def identical(signal: Signal, names: Sequence[str], dropped: Mapping[str, str]) -> list[str]:
    """Sentences on channels, of those that are not `dropped`, whose samples are the same ones."""
    groups: dict[bytes, list[str]] = {}
    for name, row in zip(names, signal, strict=True):
        if name not in dropped:
            groups.setdefault(hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest(), []).append(name)
    return [f"{listed(same)} are identical: copies of one channel" for same in groups.values() if len(same) > 1]


def derived(
    signal: Signal, names: Sequence[str], steps: Steps, dropped: Dropped, done: list[str]
) -> tuple[Signal, list[str]]:
    """Against the reference and in the pairs of the steps.

    Raises InputError for the average of one channel, and where no pair can be made.
    """
    if steps.reference == "average":
        if len(names) == 1:
            raise InputError(f"less its average, {names[0]!r} alone is nothing: send other channels", param="reference")
        signal = signal - signal.mean(0, keepdims=True)
        done.append(f"referenced to the average of {len(names)} channels")
    if steps.pairs is None:
        return signal, list(names)
    rows = {system_name(name): row for name, row in zip(names, signal, strict=True)}
    made, missing = _pairs(rows, steps.pairs, {system_name(name): why for name, why in dropped.items()})
    dropped |= missing
    if not made:
        reasons = "; ".join(f"{pair}: {why}" for pair, why in list(missing.items())[:3])
        raise InputError(f"none of the bipolar channels can be made ({reasons} ...)", param="ch_names")
    done.append(f"{len(made)} bipolar channels made")
    return np.stack(list(made.values())), list(made)


def _pairs(
    rows: Mapping[str, Signal], wanted: Sequence[str], reasons: Mapping[str, str]
) -> tuple[dict[str, Signal], Dropped]:
    """By the names that were asked for; what cannot be made, and why. A pair may have been recorded as such."""
    made: dict[str, Signal] = {}
    missing: Dropped = {}
    for pair in wanted:
        electrodes = electrodes_of(pair) or ()
        lacking = [name for name in electrodes if name not in rows]
        if "-".join(electrodes) in rows:
            made[pair] = rows["-".join(electrodes)]
        elif len(electrodes) == 2 and not lacking:
            made[pair] = rows[electrodes[0]] - rows[electrodes[1]]
        else:
            said = [f"{name} {reasons.get(name, NOT_RECORDED)}" for name in lacking]
            missing[pair] = " and ".join(said) or "a pair of electrodes is not recorded"
    return made, missing


def placed(names: Sequence[str], own: Mapping[str, Position]) -> Montage:
    """`own` are positions by recorded names; a pair is in the middle of its electrodes."""
    by_name = {system_name(name): where for name, where in own.items()}
    places = {}
    for name in names:
        known = system_name(name)
        parts = electrodes_of(name) or ()
        if known in by_name:
            places[name] = by_name[known]
        elif any(part in by_name for part in parts):
            places[name] = midpoint(parts, by_name)
    return Montage.of(names, places)


def lacking(steps: Steps, montage: Montage, dropped: Mapping[str, str]) -> dict[str, str]:
    """What the steps list, channels or pairs, and the montage has not -> why."""
    found = {system_name(channel.name) for channel in montage.channels}
    reasons = {system_name(name): why for name, why in dropped.items()}
    wanted = steps.pairs or steps.channels or ()
    return {name: reasons.get(system_name(name), NOT_RECORDED) for name in wanted if system_name(name) not in found}


def shown_lacking(steps: Steps, missing: Mapping[str, str], dropped: Mapping[str, str]) -> str:
    """With the channels that nobody knows: one of them may be what is missing."""
    count = len(steps.pairs or steps.channels or ())
    said = listed([f"{name} ({why})" for name, why in missing.items()])
    unknown = listed([name for name, why in dropped.items() if why == UNKNOWN])
    more = f"; {unknown} is no name of the 10-05 system" if unknown else ""
    return (
        f"of the {count} channels that the model was trained on it reads {count - len(missing)}: without {said}{more}"
    )


def check_coverage(steps: Steps, montage: Montage, dropped: Mapping[str, str]) -> None:
    """Raises InputError where channels that the steps list are not there and the answer would be wrong: one seems to be
    misspelt, or all of a lobe are, whose place in the head's input would be zeros.
    """
    missing = lacking(steps, montage, dropped)
    if not missing:
        return
    absent = {_looks(name): name for name, why in dropped.items() if why == NOT_RECORDED}
    for name in (name for name, why in dropped.items() if why == UNKNOWN):
        near = difflib.get_close_matches(_looks(name), absent, 1, _CLOSE)
        if near:
            raise InputError(
                f"channel {name!r} is unknown, and {absent[near[0]]}, which the model reads, is not recorded: is it "
                "that? Rename it, or leave it out",
                param="ch_names",
            )
    for lobe in Lobe:
        lost = [f"{name} ({why})" for name, why in missing.items() if electrodes_of(name) and _is_in(name, lobe)]
        if lost and not any(lobe in channel.lobes for channel in montage.channels):
            place = lobe.name.lower().replace("_", " ")
            raise InputError(
                f"without {listed(lost)} nothing is left of what the model was trained to read in the lobe {place!r}, "
                "and its head would read zeros there: send it, or ask a model that was trained without it",
                param="ch_names",
            )


def _is_in(name: str, lobe: Lobe) -> bool:
    return lobe in find_channel(name).lobes


def _looks(name: str) -> str:
    """`01` and `ol` as O1: what is typed for what it looks like."""
    return spelling(name).upper().translate(_ALIKE)
