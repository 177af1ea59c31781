"""Channels as MNE describes them, in info["chs"]: where those are whose names the 10-05 system lacks.

Knows nothing of signals and of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from patchbay.errors import InputError
from patchbay.models.neuript.montage import Montage, Position, electrodes_of
from patchbay.models.neuript.recording import is_eeg

FARTHEST_M = 0.3
# The nasion and the points before the ears, in the frame of electrodes.json. MNE's head frame has its origin between
# the ears: without the step from one to the other, an electrode would be 5 cm from its place.
NASION = np.array((1.468, 85.067, -34.836))
LEFT_EAR = np.array((-80.616, -29.089, -41.311))
RIGHT_EAR = np.array((84.363, -28.503, -41.277))

ChsInfo = Sequence[Mapping[str, Any]]


def montage_of(chs_info: ChsInfo) -> Montage:
    """Of MNE's channels. Raises InputError, with the channel's name."""
    return Montage.of([channel["ch_name"] for channel in chs_info], own_places(chs_info))


def own_places(chs_info: ChsInfo) -> dict[str, Position]:
    """Of channels whose names the system lacks."""
    if not chs_info:
        raise InputError("there is no channel: give MNE's info['chs']", param="chs_info")
    own: dict[str, Position] = {}
    for number, channel in enumerate(chs_info):
        if not isinstance(channel.get("ch_name"), str):
            raise InputError(f"channel {number} has no ch_name: give MNE's info['chs']", param="chs_info")
        name = channel["ch_name"]
        if not is_eeg(name):
            raise InputError(f"channel {name!r} is no EEG by its name: leave it out, with raw.pick", param="chs_info")
        if electrodes_of(name) is None:
            own[name] = _place(name, channel.get("loc"))
    return own


def _place(name: str, loc: Any) -> Position:
    """In the montage's frame and millimetres, of metres in MNE's head frame: the x axis through both ears, the y axis
    through the nasion.
    """
    head = np.ravel(np.asarray(loc, np.float64))[:3]
    if len(head) < 3 or not np.isfinite(head).all() or not head.any():
        raise InputError(
            f"channel {name!r} has no place: the 10-05 system has no such name, and loc is empty. "
            "Rename it with raw.rename_channels, or place it with raw.set_montage",
            param="chs_info",
        )
    if np.linalg.norm(head) > FARTHEST_M:
        raise InputError(f"channel {name!r} is on no head at {head.tolist()}: loc is in metres", param="chs_info")
    right = (RIGHT_EAR - LEFT_EAR) / np.linalg.norm(RIGHT_EAR - LEFT_EAR)
    origin = LEFT_EAR + (NASION - LEFT_EAR) @ right * right
    front = (NASION - origin) / np.linalg.norm(NASION - origin)
    x, y, z = (origin + 1e3 * head @ np.stack((right, front, np.cross(right, front)))).tolist()
    return x, y, z
