"""What was planned before, remembered by what a call looks like; and the identity of a list of output stages.

A stage is known by its number and not by its address: where one stage was, another may be soon after.
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
        """Remember. A full memory is emptied first: simpler than an order, and as good for few shapes."""
        if len(self._entries) >= self.LIMIT:
            self._entries.clear()
        self._entries[key] = value


_lists = Seen()


def stages_key(output: Any) -> Any:
    """Identity of a pipeline: the numbers of its stages, which no other stage ever has.

    Raises AttributeError or TypeError where something is no stage.
    """
    if output is None:
        return ()
    known = _lists.get(id(output))  # 0.08 us, against 0.2 for what follows
    # Equal stages do the same, so the numbers of equal ones that came before will do.
    if known is not None and known[0] == output:
        return known[1]
    if isinstance(output, (list, tuple)):
        return tuple([stage._number for stage in output])
    return (output._number,)


def remember_list(output: Any, stages: tuple[Any, ...]) -> None:
    """Let `stages_key` know this list again, as long as it holds these stages: elements are compared by
    identity first.
    """
    if type(output) is list:
        _lists.add(id(output), (list(stages), stages_key(stages)))
