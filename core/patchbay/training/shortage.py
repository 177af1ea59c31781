"""Why too few windows are left to train on: what each recording gave, what was rejected, and for which channels.

Knows nothing of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from patchbay.errors import InputError
from patchbay.models.neuript.preprocess import Rejected
from patchbay.training.windows import Source

NAMED = 5  # recordings, and channels


def check_enough(found: Sequence[Source], train: Sequence[Source], batch_size: int) -> None:
    """`train`: what is left of `found` where some windows are held out. Raises InputError for less than a batch."""
    left = _count(train)
    if left >= batch_size:
        return
    rejected = [one for source in found for one in source.windows.rejected]
    held_out = _count(found) - left
    parts = [_of_each(found)]
    parts += [f"{len(rejected)} were rejected ({_reasons(rejected)}), which --no-reject keeps"] if rejected else []
    parts += [f"{held_out} are held out"] if held_out else []
    raise InputError(
        f"{left} windows are fewer than a batch of {batch_size}: {'; '.join(parts)}. Give more recordings, shorter "
        "--window-seconds or a lower --batch-size",
        param="data",
    )


def _count(sources: Sequence[Source]) -> int:
    return sum(len(source.windows.starts) for source in sources)


def _of_each(found: Sequence[Source]) -> str:
    if not found:
        return "no recording is as long as a window"
    given = [
        f"{source.path.name} {len(source.windows.starts) + len(source.windows.rejected)}" for source in found[:NAMED]
    ]
    more = f" and {len(found) - NAMED} recordings more" if len(found) > NAMED else ""
    return f"windows cut: {', '.join(given)}{more}"


def _reasons(rejected: Sequence[Rejected]) -> str:
    """`28 over 100 uV, most often by Fp1, Fp2`."""
    shown = []
    for reason, count in Counter(one.reason for one in rejected).most_common():
        names = Counter(name for one in rejected if one.reason == reason for name in one.channels)
        often = ", ".join(name for name, _ in names.most_common(NAMED))
        shown.append(f"{count} {reason}" + (f", most often by {often}" if often else ""))
    return "; ".join(shown)
