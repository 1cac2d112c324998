"""Branches of an If are graphs like the model's own: with the same results, bit for bit, rewritten and recorded
in the same way.
"""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx_models as om
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from lowgemm.engine import parts
from lowgemm.onnx_run import Model, branches
from lowgemm.onnx_run.program import Program

KINDS = ("dynamic", "qdq", "qdq_channel_s8", "qoperator", "qoperator_channel")
OURS = frozenset({("", "MatMulInteger"), ("", "DynamicQuantizeLinear")})


def value(name, kind=T.FLOAT, shape=None):
    return h.make_tensor_value_info(name, kind, shape)


def constant(name, number, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(number, dtype), name)


def graph(nodes, outputs, initializers=()):
    return h.make_graph(nodes, "b", [], [value(o) for o in outputs], list(initializers))


def when(condition, outputs, then, otherwise):
    return h.make_node("If", [condition], outputs, then_branch=then, else_branch=otherwise)


def model_of(nodes, inputs, outputs, initializers=()):
    made = h.make_graph(nodes, "g", inputs, [value(o) for o in outputs], list(initializers))
    return h.make_model(made, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def product(x="x", w="w", y="y", n=""):
    """Nodes of a dynamic product; its weight's scale is "ws"."""
    return [
        h.make_node("DynamicQuantizeLinear", [x], [f"q{n}", f"s{n}", f"z{n}"]),
        h.make_node("MatMulInteger", [f"q{n}", w, f"z{n}"], [f"i{n}"]),
        h.make_node("Cast", [f"i{n}"], [f"f{n}"], to=T.FLOAT),
        h.make_node("Mul", [f"s{n}", "ws"], [f"t{n}"]),
        h.make_node("Mul", [f"f{n}", f"t{n}"], [y]),
    ]


WEIGHT = np.random.default_rng(5).integers(-128, 128, (24, 24), dtype=np.int8)
SCALE = constant("ws", 0.01)
X, C = value("x", T.FLOAT, [None, 24]), value("c", T.BOOL, [])


def feed(condition=True, rows=3, seed=0):
    x = np.random.default_rng(seed).standard_normal((rows, 24)).astype(np.float32)
    return {"c": np.array(condition), "x": x}


def same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


def as_written(model, feeds):
    return list(om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL").values())


def wrapped(model, other, outside):
    """An If of "c" with the graphs of two models of "x" as branches. `outside`: what of their constants is the
    graph's, by number. Their names are mostly the same.
    """
    kept, graphs = [], []
    for i, m in enumerate((model, other)):
        g = copy.deepcopy(m.graph)
        own = []
        for j, t in enumerate(g.initializer):
            if outside(j):
                renamed = copy.deepcopy(t)
                renamed.name = f"outside{i} {t.name}"
                kept.append(renamed)
                for node in g.node:
                    for k, n in enumerate(node.input):
                        if n == t.name:
                            node.input[k] = renamed.name
            else:
                own.append(t)
        graphs.append(h.make_graph(g.node, "b", [], g.output, own))
    opsets = {o.domain: o.version for o in model.opset_import}
    made = h.make_graph(
        [when("c", ["result"], *graphs)], "g", [C, *model.graph.input], [value("result")], kept
    )
    sets = [h.make_opsetid(d, v) for d, v in opsets.items()]
    return h.make_model(made, opset_imports=sets, ir_version=model.ir_version)


@pytest.mark.parametrize("where", ["inside", "outside", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_is_as_the_model_alone(kind, where, tmp_path, monkeypatch):
    """In every form that onnxruntime's tool makes: the same rewritings, the same bits, whichever branch it is
    and however many rows there are.
    """
    peers.need("onnxruntime")
    monkeypatch.setattr(parts, "NANOSECONDS", 1e-9)
    g = np.random.default_rng(7)
    batches = [g.standard_normal((4, 64)).astype(np.float32) for _ in range(4)]
    models = [
        om.quantized(om.mlp(g, gemm)[0], tmp_path / f"{kind}{gemm}.onnx", kind, batches)
        for gemm in (True, False)
    ]
    both = wrapped(*models, {"inside": lambda j: False, "outside": lambda j: True,
                             "both": lambda j: j % 2}[where])  # fmt: skip
    for fuse in (True, False):
        alone = [Model(m, fuse=fuse) for m in models]
        for threads in (1, 2):
            ours = Model(both, fuse=fuse, num_threads=threads)
            assert ours.rewritten == alone[0].rewritten + alone[1].rewritten
            for run in range(14):
                taken = run % 3 == 0 if run < 8 else run < 11
                x = g.standard_normal((1 + run % 2 * 6, 64)).astype(np.float32)
                got = ours.run(None, {"x": x, "c": np.array(taken)})
                same(got, alone[not taken].run(None, {"x": x}))
                if not fuse:
                    same(got, as_written(both, {"x": x, "c": np.array(taken)}))


def test_images_in_branches(tmp_path):
    """A network of convolutions, quantized each way, and its float form as the other branch."""
    peers.need("onnxruntime")
    g = np.random.default_rng(8)
    net, shape = om.conv_net(g)
    batches = [g.standard_normal((2, *shape)).astype(np.float32) for _ in range(3)]
    for kind in KINDS:
        model = om.quantized(net, tmp_path / f"{kind}.onnx", kind, batches)
        floats = copy.deepcopy(net)
        floats.opset_import[0].version = next(o.version for o in model.opset_import if not o.domain)
        both, alone = wrapped(model, floats, lambda j: False), Model(model)
        ours = Model(both)
        assert ours.rewritten == alone.rewritten
        for n in (1, 1, 1, 2, 1, 2):
            x = g.standard_normal((n, *shape)).astype(np.float32)
            same(ours.run(None, {"x": x, "c": np.array(True)}), alone.run(None, {"x": x}))
            want = om.onnxruntime_run(floats, {"x": x}, "ORT_DISABLE_ALL")["y"]
            np.testing.assert_allclose(ours.run(None, {"x": x, "c": np.array(False)})[0], want, rtol=1e-5)


def nested():
    """Products in branches of an If in a branch, which read what was made at every depth; the last output says
    which branches they were.
    """
    deep = [
        graph(product("h", "w", "y"), ["y"], [constant("w", WEIGHT, np.int8)]),
        graph([*product("a", "w", "y"), h.make_node("Add", ["y", "h"], ["r"])], ["r"],
              [constant("w", WEIGHT[::-1], np.int8)]),
    ]  # fmt: skip
    middle = graph(
        [*product("a", "v", "h", "1"), h.make_node("ReduceMax", ["h"], ["top"], keepdims=0),
         h.make_node("Greater", ["top", "h0"], ["d"]), h.make_node("Cast", ["d"], ["which"], to=T.FLOAT),
         when("d", ["e"], *deep), h.make_node("Relu", ["e"], ["y"])],
        ["y", "h", "which"], [constant("v", WEIGHT.T, np.int8), constant("h0", 5)],
    )  # fmt: skip
    other = graph(
        [*product("a", "u", "y"), h.make_node("Neg", ["a"], ["h"])], ["y", "h", "k"], [constant("k", -1)]
    )
    nodes = [h.make_node("Tanh", ["x"], ["a"]), when("c", ["b", "k", "which_one"], middle, other),
             h.make_node("Sub", ["b", "k"], ["z"])]  # fmt: skip
    return model_of(nodes, [C, X], ["z", "b", "which_one"], [SCALE, constant("u", WEIGHT, np.int8)])


def large(scale, run):
    feeds = feed(run % 4 != 3, 2 + run // 6 % 2, run)
    feeds["x"] *= scale
    return feeds


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fuse", [True, False])
def test_branches_in_branches(fuse, threads, monkeypatch):
    peers.need("onnxruntime")
    monkeypatch.setattr(parts, "NANOSECONDS", 1e-9)
    model = nested()
    ours = Model(model, fuse=fuse, num_threads=threads)
    assert ours.rewritten == ({"MatMulInteger -> MatMulIntegerToFloat": 4} if fuse else {})
    taken = set()
    for run in range(24):
        feeds = large(0.01 if run % 3 else 1, run)
        want = as_written(model, feeds)
        same(ours.run(None, feeds), want)
        taken.add(float(want[2]))
    assert taken == {-1, 0, 1}


@pytest.mark.parametrize("fuse", [True, False])
def test_many_threads_call_one_model(fuse):
    peers.need("onnxruntime")
    model = nested()
    ours = Model(model, fuse=fuse, num_threads=1)
    feeds = [large(0.01 if run % 3 else 1, run) for run in range(12)]
    want = [as_written(model, f) for f in feeds]

    def calls(first):
        for k in range(40):
            i = (first + k * (1 + first)) % len(feeds)
            same(ours.run(None, feeds[i]), want[i])

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(calls, i) for i in range(6)]:
            done.result()


def programs(model):
    """Of the branches, outer ones first."""

    def inside(program):
        for p in program.inner:
            yield p
            yield from inside(p)

    return list(inside(model._program))


def test_branches_are_recorded_and_get_frames():
    model = Model(nested(), num_threads=1)
    for run in [*range(24)] * 3:
        model.run(None, large(0.01 if run % 3 else 1, run))
    made = programs(model)
    assert len(made) == 4
    for program in made:
        groups = [t.group for t in program._turns if hasattr(t, "group")]
        assert groups and all(r.tape for g in groups for known in g.found for r in known.values())
        frames = [f for known in program._frames._known.values() if type(known) is list for f in known]
        assert frames and any(type(u).__name__ == "_Taped" for f in frames for u in f.units)
        assert not any(f.bailed for f in frames)


def test_times_of_branches():
    model = Model(nested(), num_threads=1)
    for run in range(4):
        model.timed(None, large(1, run))
    rows = {r.op: r for r in model.profile if r.runs_on == "lowgemm"}
    assert rows["com.microsoft::MatMulIntegerToFloat"].seconds > 0
    assert rows["If"].seconds == 0  # its time is that of the steps in it


def test_constants_that_nodes_make_are_inputs_of_parts():
    """onnxruntime multiplies one row by constants in another order: as written, what a node makes is none, in a
    branch either.
    """
    peers.need("onnxruntime")
    g = np.random.default_rng(2)
    codes = constant("codes", g.integers(-128, 128, (300, 40)), np.int8)
    real = h.make_node("DequantizeLinear", ["codes", "ws"], ["real"])
    mul = h.make_node("MatMul", ["x", "real"], ["y"])
    reads = graph([mul, *product("y", "w", "p")], ["p"], [constant("w", WEIGHT.repeat(2, 0)[:40], np.int8)])
    makes = graph([real, mul, *product("y", "w", "p")], ["p"], list(reads.initializer))
    for nodes in ([real, when("c", ["r"], reads, reads)], [when("c", ["r"], makes, makes)]):
        model = model_of(nodes, [C, value("x", T.FLOAT, [1, 300])], ["r"], [SCALE, codes])
        ours = Model(model, fuse=False, num_threads=1)
        for _ in range(4):
            feeds = {"c": np.array(True), "x": g.standard_normal((1, 300)).astype(np.float32)}
            same(ours.run(None, feeds), as_written(model, feeds))


# ---- results of branches ----------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fuse", [True, False])
def test_results_that_are_values_of_others(fuse, threads):
    """A branch may return its constant, one from outside, the model's input, or one value twice; the caller may
    write to all of them.
    """
    first = graph(product("x", "w", "y"), ["y", "k", "x", "y", "outer"], [constant("k", np.ones((2, 2)))])
    other = graph(product("x", "w", "k"), ["x", "k", "x", "k", "x"])
    outputs = ["a", "b", "d", "e", "f"]
    weights = [SCALE, constant("w", WEIGHT, np.int8), constant("outer", [4, 5])]
    nodes = [*product(y="p", n="0"), when("c", outputs, first, other)]  # the first give the graph a frame
    model = model_of(nodes, [C, X], [*outputs, "p"], weights)
    plain = Model(model_of(product(), [X], ["y"], weights), fuse=fuse)
    ours = Model(model, fuse=fuse, num_threads=threads)
    results = []
    for writes in (False, True):
        for run in range(12):
            feeds = feed(run % 3 != 2, 2 + run // 6, run)
            y, before = plain.run(None, {"x": feeds["x"]})[0], feeds["x"].copy()
            found = ours.run(None, feeds)
            want = (y, np.ones((2, 2), np.float32), before, y, np.float32([4, 5]))
            results.append((found, (*(want if feeds["c"] else (before, y, before, y, before)), y)))
            same(*results[-1])
            if writes:
                for a in found:
                    a[...] = 77
                np.testing.assert_array_equal(feeds["x"], before)
                results.pop()
    for found, want in results:
        same(found, want)


def test_results_that_nobody_reads():
    model = model_of(
        [when("c", ["", "y"], graph(product(y="p") + [h.make_node("Neg", ["x"], ["n"])], ["p", "n"]),
              graph(product(y="p"), ["x", "p"]))],
        [C, X], ["y"], [SCALE, constant("w", WEIGHT, np.int8)],
    )  # fmt: skip
    ours = Model(model)
    for run in range(6):
        feeds = feed(run % 2 == 0, seed=run)
        if run % 2 == 0:
            np.testing.assert_array_equal(ours.run(None, feeds)[0], -feeds["x"])
        assert ours.run(None, feeds)[0].shape == (3, 24)


def twice(tensor):
    a = numpy_helper.to_array(tensor)
    return np.asarray(2 * a, a.dtype)


def test_scales_from_outside():
    """What a branch reads may be a constant of the graph: its weights and scales, or the bytes it looks up."""
    peers.need("onnxruntime")
    first = graph(product(), ["y"])
    other = graph([*product("x", "w", "p"), h.make_node("Add", ["p", "bias"], ["y"])], ["y"])
    outside = [SCALE, constant("w", WEIGHT, np.int8), constant("bias", np.arange(24))]
    for fed in ((), ("ws",), ("w",), ("bias",)):
        inputs = [C, X] + [value(n, T.INT8 if n == "w" else T.FLOAT) for n in fed]
        model = model_of([when("c", ["r"], first, other)], inputs, ["r"], outside)
        ours = Model(model)
        for run in range(8):
            feeds = feed(run % 3 == 0, seed=run)
            same(ours.run(None, feeds), as_written(model, feeds))
            if fed:  # an initializer that is an input may be given anew
                more = feeds | {t.name: twice(t) for t in outside if t.name in fed}
                same(ours.run(None, more), as_written(model, more))


# ---- what a model holds -----------------------------------------------------------------------------------
def test_a_weight_of_the_graph_and_of_a_branch_is_held_once_as_it_is():
    big = np.random.default_rng(1).integers(-128, 128, (24, 64), dtype=np.int8)
    nodes = [
        *product(),
        when("c", ["r"], graph(product(n="1", y="p"), ["p"]), graph(product(n="1", y="p"), ["p"])),
    ]
    proto = model_of(nodes, [C, X], ["r", "y"], [SCALE, constant("w", big, np.int8)])
    model = Model(proto)
    for run in range(4):
        got, want = model.run(None, feed(run % 2 == 0, seed=run))
        np.testing.assert_array_equal(got, want)
    assert not model._program.all_packed()
    held = {**model._large, **model._program.unpacked()}
    assert sum(np.array_equal(v, big) for v in held.values()) == 1


def test_a_branch_holds_its_weight_packed_alone():
    big = np.random.default_rng(1).integers(-128, 128, (64, 64), dtype=np.int8)
    cases = {
        "own": ([graph(product(w="v"), ["y"], [constant("v", big, np.int8)]), graph(product(w="w"), ["y"])],
                {"v", "w"}),
        "both": ([graph(product(), ["y"]), graph(product(), ["y"])], set()),
        "seen": ([graph(product(), ["y"]), graph([h.make_node("Cast", ["w"], ["y"], to=1)], ["y"])], set()),
    }  # fmt: skip
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    for name, (graphs, packed) in cases.items():
        inputs = [C, value("x", T.FLOAT, [None, 64])]
        proto = model_of([when("c", ["r"], *graphs)], inputs, ["r"], [SCALE, constant("w", big, np.int8)])
        plain = Model(model_of(product(), inputs[1:], ["y"], [SCALE, constant("w", big, np.int8)]))
        model = Model(proto)
        for one in (model, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert set(one._program.all_packed()) == packed and not packed & set(one._large), name
            for c in (True, False) * 3:
                got = one.run(None, {"c": np.array(c), "x": x})[0]
                if name == "seen" and not c:
                    np.testing.assert_array_equal(got, big.astype(np.float32))
                else:
                    np.testing.assert_array_equal(got, plain.run(None, {"x": x})[0])
        held = {**model._large, **model._program.unpacked()}
        assert sum(np.array_equal(v, big) for v in held.values()) == (2 if name == "own" else 1)
        # not in the message of the model either
        assert model._proto.ByteSize() < 4000


# ---- the graphs -------------------------------------------------------------------------------------------
def lifted(model):
    made = copy.deepcopy(model)
    branches.constants_to_initializers(made)
    branches.lift(made, OURS)
    return made


def all_names(g):
    found = [t.name for t in (*g.initializer, *g.input)]
    for node in g.node:
        found += [o for o in node.output if o]
        for inner in [a.g for a in node.attribute if a.type == 5]:
            found += all_names(inner)
    return found


def test_names_are_the_only_ones():
    made = lifted(nested())
    names = all_names(made.graph)
    assert len(names) == len(set(names))
    for g in list(branches.graphs(made.graph, OURS))[1:]:
        assert not g.initializer
        assert {o.name for o in g.output} <= {o for n in g.node for o in n.output}
    feeds = feed()
    same(as_written(made, feeds), as_written(nested(), feeds))


def test_new_names():
    """Of a model, of what is in it, and of initializers that are elsewhere: their arrays are not looked at."""
    names = branches.Names(nested(), {"held": np.ones(3), "h_": np.zeros(2)})
    assert [names.new(n) for n in ("x", "held", "h", "h", "free", "free")] == [
        "x_", "held_", "h__", "h___", "free", "free_",
    ]  # fmt: skip
    assert names.only("v") == "v" and names.only("w") == "w_" and names.only("held") == "held"


def kinds(node):
    """Operators of a node and of what is in it, and how many constants that has."""
    inner = [a.g for a in node.attribute if a.type == 5]
    return node.op_type, [([kinds(n) for n in g.node], len(g.initializer)) for g in inner]


def test_what_stays_as_it_is():
    """An If of float operators, and one in a loop."""
    floats = when("c", ["r"], graph([h.make_node("Neg", ["x"], ["y"])], ["y"]),
                  graph([h.make_node("Add", ["x", "k"], ["y"])], ["y"], [constant("k", 1)]))  # fmt: skip
    inner = when("more", ["z"], graph(product("v"), ["y"], [constant("w", WEIGHT, np.int8)]),
                 graph([h.make_node("Identity", ["v"], ["y"])], ["y"]))  # fmt: skip
    body = h.make_graph(
        [inner, h.make_node("Identity", ["more"], ["on"])], "b",
        [value("n", T.INT64, []), value("more", T.BOOL, []), value("v")], [value("on", T.BOOL), value("z")],
    )  # fmt: skip
    loop = h.make_node("Loop", ["steps", "c", "r"], ["last"], body=body)
    model = model_of([floats, loop], [C, X], ["last"], [SCALE, constant("steps", 2, np.int64)])
    made = lifted(model)
    assert len(made.graph.initializer) == 2
    assert [kinds(n) for n in made.graph.node] == [kinds(n) for n in model.graph.node]
    assert len(set(all_names(made.graph))) == len(all_names(made.graph))
    same(as_written(made, feed()), as_written(model, feed()))
    peers.need("onnxruntime")
    ours = Model(model)
    for run in range(4):
        feeds = feed(run % 2 == 0, seed=run)
        same(ours.run(None, feeds), as_written(model, feeds))


@pytest.mark.parametrize("decided", [False, True])
def test_names_that_graphs_within_use_again(decided):
    """A value in a branch may have the name of the If's result, and one in a graph within that of another
    branch's, or of the value that it becomes when the nodes of the branch take the place of the If.
    """
    peers.need("onnxruntime")
    other = graph([h.make_node("Neg", ["p"], ["i"])], ["i"])
    again = graph([h.make_node("Abs", ["p"], ["t"]), h.make_node("Add", ["t", "p"], ["y0"])], ["y0"])
    deep = when("c", ["r"], again, other)
    first = graph([*product(y="p", n="1"), deep, h.make_node("Identity", ["p"], ["e"])], ["p", "r", "e"])
    second = graph([*product(y="p"), h.make_node("Tanh", ["p"], ["r"]), h.make_node("Abs", ["r"], ["e"])],
                   ["r", "p", "e"])  # fmt: skip
    nodes = [when("yes" if decided else "c", ["y0", "y1", "y2"], first, second)]
    held = [SCALE, constant("w", WEIGHT, np.int8), constant("yes", True, bool)]
    model = model_of(nodes, [C, X], ["y0", "y1", "y2"], held)
    assert len(set(all_names(lifted(model).graph))) == len(all_names(lifted(model).graph))
    for fuse in (True, False):
        ours = Model(model, fuse=fuse)
        for c in (True, False) * 3:
            same(ours.run(None, feed(c)), as_written(model, feed(c)))


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("condition", [True, False])
def test_a_constant_condition_leaves_no_if(condition, fuse):
    """Of the graph, of a branch, and, fused, one that nodes compute from constants; a float If too."""
    peers.need("onnxruntime")
    deep = when("no", ["y"], graph(product(y="p", w="v"), ["p"], [constant("v", WEIGHT, np.int8)]),
                graph([h.make_node("Neg", ["x"], ["p"])], ["p"]))  # fmt: skip
    floats = when("yes", ["o1"], graph([h.make_node("Add", ["r", "k"], ["y"])], ["y"], [constant("k", 3)]),
                  graph([h.make_node("Identity", ["r"], ["y"])], ["y"]))  # fmt: skip
    nodes = [
        h.make_node("Constant", [], ["no"], value=constant("", not condition, bool)),
        when("yes", ["r"], graph([deep], ["y"]), graph(product(), ["y"])),
        floats, h.make_node("Not", ["yes"], ["computed"]),
        when("computed", ["o2"], graph(product("o1", y="p"), ["p"]), graph([h.make_node("Relu", ["o1"], ["p"])], ["p"])),
        when("given", ["u"], graph(product("o2", y="p"), ["p"]), graph([h.make_node("Neg", ["o2"], ["p"])], ["p"])),
    ]  # fmt: skip
    held = [
        SCALE,
        constant("w", WEIGHT, np.int8),
        constant("yes", condition, bool),
        constant("given", False, bool),
    ]
    model = model_of(nodes, [X, value("given", T.BOOL, [])], ["u"], held)
    ours = Model(model, fuse=fuse)
    left = [n.input[0] for s in ours._program.all_steps() for n in s.nodes if n.op_type == "If"]
    assert left == (["given"] if fuse else ["computed", "given"])
    for given in (None, True, False, None):
        feeds = {"x": feed()["x"]} | ({} if given is None else {"given": np.array(given)})
        same(ours.run(None, feeds), as_written(model, feeds))


def test_a_condition_of_more_than_one_element_is_the_engines_to_refuse():
    model = model_of([when("two", ["r"], graph(product(), ["y"]), graph(product(), ["y"]))], [X], ["r"],
                     [SCALE, constant("w", WEIGHT, np.int8), constant("two", [True, False], bool)])  # fmt: skip
    with pytest.raises(ValueError, match="If"):
        Model(model).run(None, {"x": feed()["x"]})


def test_an_error_in_a_branch_names_its_node():
    model = model_of([when("c", ["r"], graph(product(), ["y"]), graph(product("x", "w", "p"), ["p"]))],
                     [C, value("x")], ["r"], [SCALE, constant("w", WEIGHT, np.int8)])  # fmt: skip
    with pytest.raises(ValueError, match="MatMul"):
        Model(model).run(None, {"c": np.array(True), "x": np.ones((3, 5), np.float32)})


def test_without_onnxruntime():
    model = nested()
    ours, plain = Model(model, float_nodes="onnx.reference"), Model(model)
    for run in range(4):
        feeds = large(1, run)
        for a, b in zip(ours.run(None, feeds), plain.run(None, feeds), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("moved", [False, True])
def test_what_is_dequantized_for_a_branch_of_the_engines(moved):
    """Rows of a quantized table: onnxruntime's optimizer (1.32) aborts the process if it gets the
    DequantizeLinear of what only a branch reads.
    """
    g = np.random.default_rng(3)
    nodes = [
        h.make_node("Gather", ["table", "i"], ["rows"]), h.make_node("DequantizeLinear", ["rows", "ws", "z"], ["d"]),
        h.make_node("Reshape", ["d", "flat"], ["r"]),
        when("c", ["y"], *(graph([h.make_node(op, ["r" if moved else "d"], ["o"])], ["o"]) for op in ("Abs", "Neg"))),
    ]  # fmt: skip
    table = g.integers(0, 256, (20, 10), dtype=np.uint8)
    held = [
        SCALE,
        constant("table", table, np.uint8),
        constant("z", 7, np.uint8),
        constant("flat", [-1], np.int64),
    ]
    ours = Model(model_of(nodes, [C, value("i", T.INT64, [None])], ["y"], held))
    assert [(s.part is None) for s in ours._program.steps if s.nodes[0].op_type == "DequantizeLinear"] == [
        True
    ]
    for run in range(6):
        i = g.integers(0, 20, 3)
        want = (table[i].astype(np.float32) - 7) * np.float32(0.01)
        want = np.abs(want) if run % 2 == 0 else -want
        got = ours.run(None, {"c": np.array(run % 2 == 0), "i": i})[0]
        np.testing.assert_array_equal(got, want.reshape(-1) if moved else want)


def test_programs_have_inputs_of_their_own():
    """A branch is given what it reads, not what the other does."""
    model = model_of(
        [h.make_node("Neg", ["x"], ["a"]), h.make_node("Abs", ["x"], ["b"]),
         when("c", ["r"], graph(product("a"), ["y"]), graph(product("b"), ["y"]))],
        [C, X], ["r"], [SCALE, constant("w", WEIGHT, np.int8)],
    )  # fmt: skip
    made = programs(Model(model))
    assert all(isinstance(p, Program) for p in made)
    assert sorted(p.inputs for p in made) == [["a"], ["b"]]
