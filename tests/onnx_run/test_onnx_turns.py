"""Who runs which node: as few turns as can be, sizes left to lowgemm, dequantizers between the engine's
nodes.
"""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from onnx import helper

from lowgemm.onnx_run.turns import deferred, phases, with_neighbours


def test_phases_take_turns_as_rarely_as_can_be():
    nodes = [
        helper.make_node("A", ["x"], ["a"]), helper.make_node("Ours", ["x"], ["b"]),
        helper.make_node("A", ["x"], ["c"]),
        helper.make_node("A", ["b"], ["d"]), helper.make_node("Ours", ["c"], ["e"]),
        helper.make_node("View", ["e"], ["f"]),
    ]  # fmt: skip
    kinds = ["theirs", "ours", "theirs", "theirs", "ours", "either"]
    assert phases(nodes, kinds) == [("theirs", [0, 2]), ("ours", [1, 4, 5]), ("theirs", [3])]
    with pytest.raises(ValueError, match="order"):
        phases([helper.make_node("A", ["b"], ["a"]), helper.make_node("A", ["a"], ["b"])], ["theirs"] * 2)


def test_sizes_are_left_to_the_turn_behind_that_alone_reads_them():
    nodes = [
        helper.make_node("A", ["x"], ["a"]), helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["n"]), helper.make_node("Ours", ["a", "n"], ["y"]),
    ]  # fmt: skip
    turns = phases(nodes, ["theirs", "theirs", "theirs", "ours"])
    assert turns == [("theirs", [0, 1, 2]), ("ours", [3])]
    assert deferred(turns, nodes, {"s", "n"}) == [("theirs", [0]), ("ours", [1, 2, 3])]
    assert deferred(turns, nodes, {"n"}) == [("theirs", [0, 1]), ("ours", [2, 3])]
    nodes.append(helper.make_node("A", ["n"], ["z"]))  # the engine reads it too, in its first turn
    turns = phases(nodes, ["theirs", "theirs", "theirs", "ours", "theirs"])
    assert deferred(turns, nodes, {"s", "n"}) == turns


def test_what_either_runs_does_not_make_a_first_turn_of_the_engines():
    nodes = [helper.make_node("View", ["x"], ["a"]), helper.make_node("Ours", ["a"], ["b"])]
    assert phases(nodes, ["either", "ours"]) == [("ours", [0, 1])]
    assert phases(nodes[:1], ["either"]) == [("theirs", [0])]
    nodes.insert(1, helper.make_node("A", ["a"], ["c"]))
    assert phases(nodes, ["either", "theirs", "ours"]) == [("theirs", [0, 1]), ("ours", [2])]


def test_what_moves_elements_is_left_to_the_turn_behind_if_that_reads_it():
    nodes = [
        helper.make_node("A", ["x"], ["a"]), helper.make_node("Slice", ["a"], ["b"]),
        helper.make_node("Ours", ["b"], ["c"]), helper.make_node("A", ["c", "a"], ["d"]),
    ]  # fmt: skip
    turns = phases(nodes, ["theirs", "either", "ours", "theirs"])
    assert turns == [("theirs", [0, 1]), ("ours", [2]), ("theirs", [3])]
    assert deferred(turns, nodes, set(), {"b"}) == [("theirs", [0]), ("ours", [1, 2]), ("theirs", [3])]
    nodes[1] = helper.make_node("Split", ["a"], ["b", "b2"])
    assert deferred(turns, nodes, set(), {"b", "b2"})[0] == ("theirs", [0])
    nodes[3] = helper.make_node("A", ["b2"], ["d"])  # the engine reads one of them in its first turn
    first = phases(nodes, ["theirs", "either", "ours", "theirs"])
    assert first == [("theirs", [0, 1, 3]), ("ours", [2])]
    assert deferred(first, nodes, set(), {"b", "b2"}) == first
    nodes[1] = helper.make_node("Slice", ["a"], ["b"])
    nodes[2] = helper.make_node("Ours", ["x"], ["c"])  # the engine's later turn alone reads it
    nodes[3] = helper.make_node("A", ["c", "b"], ["d"])
    assert deferred(turns, nodes, set(), {"b"}) == turns


@pytest.mark.parametrize(
    ("before", "after", "whose"),
    [
        ("theirs", "theirs", "theirs"),
        ("theirs", "ours", "ours"),
        ("ours", "theirs", "ours"),
        ("ours", "ours", "ours"),
    ],
)
def test_a_dequantizer_is_the_engines_between_its_nodes_alone(before, after, whose):
    """What either runs stands between them, and does not matter."""
    nodes = [
        helper.make_node("A", ["x"], ["a"]), helper.make_node("View", ["a"], ["b"]),
        helper.make_node("DequantizeLinear", ["b", "scale"], ["c"]), helper.make_node("View", ["c"], ["d"]),
        helper.make_node("A", ["d"], ["y"]),
    ]  # fmt: skip
    kinds = [before, "either", "ours", "either", after]
    assert with_neighbours(nodes, kinds) == [before, "either", whose, "either", after]
