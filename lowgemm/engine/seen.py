"""What was planned before, remembered by what a call looks like; and the identity of a list of
output stages.
"""

from __future__ import annotations

from typing import Any


class Seen:
    """Bounded memory of what was planned."""

    #: Kinds of call remembered; at about 4 KB each. A program with more shapes than this replans some.
    LIMIT = 512

    def __init__(self) -> None:
        self._entries: dict[Any, Any] = {}
        self.get = self._entries.get

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has seen nothing: what is remembered belongs to addresses and identities of this process.
        return Seen, ()

    def add(self, key: Any, value: Any) -> None:
        """Remember; forgets everything when full, which is simpler than order and as good for few shapes."""
        if len(self._entries) >= self.LIMIT:
            self._entries.clear()
        self._entries[key] = value


_lists = Seen()


def stages_key(output: Any) -> Any:
    """Identity of a pipeline: stages are immutable, and a remembered plan keeps them alive."""
    if output is None:
        return None
    known = _lists.get(id(output))  # 0.08 us, against 0.2 for what follows
    if known is not None and known[0] == output:
        return known[1]
    if isinstance(output, (list, tuple)):
        return tuple(map(id, output))
    return id(output)  # one stage; anything else never becomes a plan


def remember_list(output: Any) -> None:
    """Let `stages_key` know this list again: what is compared is a copy, element by element,
    identity first.
    """
    if type(output) is list:
        _lists.add(id(output), (output.copy(), stages_key(output)))
