"""What both kinds of answers have to say for themselves. Knows nothing of where updates come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from patchbay.engine.request import Request, Update
from patchbay_server.limits import Settle


class Writer(Protocol):
    """Choices, in JSON. It remembers how far each has come: one for every request."""

    prefix: ClassVar[str]  # of the answer's id
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    is_slow: bool  # whether writing takes so long that the event loop should not

    def whole(self, update: Update) -> dict[str, Any]:
        """A choice whose only update this is."""

    def chunks(self, update: Update) -> list[dict[str, Any]]:
        """The next parts of a choice; none where the update has nothing to show."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is ready to run: its model is resolved and loaded, its prompts are tokens, which its tenant may
    use; `settle` gives back those that it did not. `about` is the `patchbay` object of its answer.
    """

    requests: Sequence[Request]
    prompt_tokens: int
    writer: Writer
    about: dict[str, Any]
    settle: Settle
