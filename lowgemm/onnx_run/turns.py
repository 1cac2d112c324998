"""Who runs which node, and in what turns: lowgemm and the engine of float nodes, one after the other.

Each change of sides costs some 10 us. So nodes that either can run go with the side at hand, and a turn takes
all that is ready.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from lowgemm.onnx_run.engines import graphs_of, read_outside, reads_of

#: A node is lowgemm's ("ours"), the engine's ("theirs"), or whoever's is at hand ("either").
OURS, THEIRS, EITHER = "ours", "theirs", "either"


def phases(nodes: Sequence[Any], kinds: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Nodes in turns: as many of the engine's as are ready, then as many of lowgemm's, and so on.

    Taking all that is ready keeps the number of turns at its least: the most changes of sides on any path.

    Returns
    -------
    list of (str, list of int)
        Side, and which nodes, in order.
    """
    makers = {o: i for i, node in enumerate(nodes) for o in node.output if o}
    needs = [{makers[n] for n in reads_of(node) if n in makers} for node in nodes]
    done: set[int] = set()
    left = list(range(len(nodes)))
    turns: list[tuple[str, list[int]]] = []
    side, idle = THEIRS, 0
    while left:
        taken: list[int] = []
        before = -1
        while len(taken) > before:  # a list's order need not be one in which all that is ready comes at once
            before, later = len(taken), []
            for i in left:
                if kinds[i] in (side, EITHER) and needs[i] <= done:
                    done.add(i)
                    taken.append(i)
                else:
                    later.append(i)
            left = later
        idle = 0 if taken else idle + 1
        if idle == 2:
            raise ValueError("model: expected nodes in an order in which each comes after what it reads")
        if taken:
            turns.append((side, taken))
        side = OURS if side == THEIRS else THEIRS
    if len(turns) > 1 and all(kinds[i] == EITHER for i in turns[0][1]):
        turns[:2] = [(turns[1][0], turns[0][1] + turns[1][1])]
    return turns


def deferred(
    turns: Sequence[tuple[str, list[int]]],
    nodes: Sequence[Any],
    sizes: Collection[str],
    moved: Collection[str] = (),
) -> list[tuple[str, list[int]]]:
    """The turns, where what computes sizes or moves elements is left to lowgemm's turn behind, if nothing
    reads it before.

    A recording has it for next to nothing; the engine takes 28 us for five such nodes.

    Parameters
    ----------
    turns, nodes
        As in `phases`.
    sizes, moved : collection of str
        Results that shapes decide, and results of operators that only move elements (`copies.py`).
    """
    turn_of = {i: t for t, (_, taken) in enumerate(turns) for i in taken}
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        for name in reads_of(node):
            readers.setdefault(name, []).append(i)
    for i in reversed(range(len(nodes))):
        t, made = turn_of[i], [o for o in nodes[i].output if o]
        read = [turn_of[r] for name in made for r in readers.get(name, ())]
        if turns[t][0] == THEIRS and read and t + 1 < len(turns):
            # what moves elements pays where lowgemm's next turn reads it: else a later one of the engine's
            # does
            size, first = made[0] in sizes, min(read)
            turn_of[i] += first > t if size else made[0] in moved and first == t + 1
    found: list[tuple[str, list[int]]] = []
    for t, (side, taken) in enumerate(turns):
        here = set(taken)
        before = sorted(i for i, turn in turn_of.items() if turn == t and i not in here)
        found.append((side, before + [i for i in taken if turn_of[i] == t]))
    return [turn for turn in found if turn[1]]


def with_neighbours(nodes: Sequence[Any], kinds: Sequence[str]) -> list[str]:
    """The sides, where a DequantizeLinear between the engine's nodes is the engine's too.

    Rows that are taken from a quantized table are so. As a step of lowgemm's it would part what is one call:
    60 us of a model's 440. But not where a branch or a body of the engine's reads what comes of it, at once
    or behind what is either's: onnxruntime's optimizer (1.32) aborts the process for that.
    """
    makers = {o: i for i, node in enumerate(nodes) for o in node.output if o}
    #: What the engine's nodes read, at once or behind what is either's, and what graphs in them do.
    behind: set[str] = set()
    inside: set[str] = set()
    for node, kind in zip(reversed(nodes), reversed(kinds), strict=True):
        inside.update(r for graph in graphs_of(node) for r in read_outside(graph))
        if kind == EITHER and not inside.isdisjoint(node.output):
            inside.update(node.input)
        if kind == THEIRS or (kind == EITHER and not behind.isdisjoint(node.output)):
            behind.update(reads_of(node))
    behind -= inside
    found = list(kinds)

    def before(name: str) -> str:
        while name in makers and kinds[makers[name]] == EITHER:
            name = nodes[makers[name]].input[0]
        return found[makers[name]] if name in makers else THEIRS

    for i, node in enumerate(nodes):
        if node.op_type == "DequantizeLinear" and kinds[i] == OURS and before(node.input[0]) == THEIRS:
            found[i] = THEIRS if node.output[0] in behind else OURS
    return found
