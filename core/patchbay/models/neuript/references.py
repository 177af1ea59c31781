"""What the names of a recording's channels say that each was measured against.

Knows nothing of signals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from patchbay.models.neuript.montage import electrodes_of, reference_of

UNSAID = "none"
_VERTEX = "Cz"
_EARS = ("A1", "A2", "M1", "M2")  # which are recorded to be references, of what is often each other
_SAME: Mapping[str, str] = {
    **dict.fromkeys(("A1A2", "A12"), "LE"),
    **dict.fromkeys(("M1M2", "LM"), "LM"),
    **dict.fromkeys(("AR", "AV", "CAR"), "AVG"),
}


def references_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Reference -> the channels against it, in their order; `none` for those whose names say nothing. Bipolar channels,
    those of the ears and names that the 10-05 system lacks are left out. Pairs with Cz are against it where there are
    no other pairs.
    """
    said = {name: reference_of(name) for name in names}
    pairs = {name: both for name in names if said[name] is None and len(both := electrodes_of(name) or ()) == 2}
    is_vertex = all(second == _VERTEX for _, second in pairs.values())
    found: dict[str, list[str]] = {}
    for name, own in said.items():
        electrodes = electrodes_of(name)
        if electrodes is None or electrodes[0] in _EARS or (name in pairs and not is_vertex):
            continue
        reference = _VERTEX if name in pairs else own or UNSAID
        found.setdefault(_SAME.get(reference, reference), []).append(name)
    return found
