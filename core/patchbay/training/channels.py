"""Channels that were asked for and are not there: a slip of the pen should not be trained on.

Knows nothing of signals and of models.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from patchbay.errors import InputError
from patchbay.models.neuript.montage import electrodes_of
from patchbay.models.neuript.recording import is_eeg

SUGGESTED = 3
LISTED = 12


def check_channels(recorded: Sequence[str], wanted: Sequence[str] | None) -> None:
    """Raises InputError, with near names, where one of those that are `wanted` is not `recorded`."""
    known = {_known(name): name for name in recorded if is_eeg(name)}
    missing = [name for name in wanted or () if _known(name) not in known]
    if missing:
        by_upper_case = {name.upper(): name for name in known}
        near = difflib.get_close_matches(_known(missing[0]).upper(), by_upper_case, SUGGESTED, 0.5)
        hint = f"; did you mean {' or '.join(by_upper_case[name] for name in near)}?" if near else ""
        more = len(known) - LISTED
        shown = ", ".join(list(known)[:LISTED]) + (f" and {more} more" if more > 0 else "")
        asked = ", ".join(map(repr, missing))
        raise InputError(f"it has no channel {asked}: its channels are {shown}{hint}", param="channels")


def _known(name: str) -> str:
    """As the 10-05 system writes it, or as it is."""
    electrodes = electrodes_of(name)
    return name if electrodes is None else "-".join(electrodes)
