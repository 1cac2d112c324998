"""Every quantized operator beside onnxruntime: models of one node, and of that node between others.

    python asv_bench/compare_operators.py [--only TEXT] [--repeat 15] [--above 1.0] [--list]

Of each case the table has lowgemm's microseconds and its part of onnxruntime's time, for the node alone and
between two operators that lowgemm records; "no" says that it was not recorded there. Both run in turns in one
process on one thread; times are medians of CPU time. Results are compared with those of onnxruntime without
its optimizer, and "differ" is printed where one bit does.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from compare_onnx import alternate, session
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
U8, S8 = np.dtype(np.uint8), np.dtype(np.int8)
_rng = np.random.default_rng(0)


class Case(NamedTuple):
    """A node, by the names of its inputs: arrays, of which those in `data` come with each run."""

    name: str
    op: str
    inputs: list[Any]
    data: tuple[int, ...]
    domain: str = ""
    attributes: dict[str, Any] = {}
    #: Permutation of the axes of the inputs by a Transpose before the node.
    turned: dict[int, tuple[int, ...]] = {}


def real(*shape: int) -> np.ndarray:
    """Random float32 numbers."""
    return _rng.standard_normal(shape).astype(np.float32)


def coded(dtype: np.dtype, *shape: int) -> np.ndarray:
    """Random bytes."""
    info = np.iinfo(dtype)
    return _rng.integers(info.min, info.max + 1, shape).astype(dtype)


def scale(*shape: int, size: float = 0.02) -> np.ndarray:
    """Random scales."""
    return (_rng.random(shape) * size + size).astype(np.float32)


def point(dtype: np.dtype, *shape: int) -> np.ndarray:
    """Random zero points."""
    return np.asarray(_rng.integers(3, 90, shape)).astype(dtype)


#: Shapes of products: tiny, medium, large, stacks, and stacks of small ones.
PRODUCTS = {
    "4x8x4": ((4, 8), (8, 4)),
    "64x64x64": ((64, 64), (64, 64)),
    "256x512x256": ((256, 512), (512, 256)),
    "12 of 32x64x32": ((1, 12, 32, 64), (1, 12, 64, 32)),
    "2x4 of 16x32x16": ((2, 4, 16, 32), (2, 4, 32, 16)),
    "8 of 128x64x128": ((2, 4, 128, 64), (2, 4, 64, 128)),
}
#: Images and filters of one to three axes, a tiny and a larger one each.
IMAGES = {
    "1 axis, tiny": ((1, 4, 16), (8, 4, 3)),
    "1 axis": ((1, 64, 400), (64, 64, 5)),
    "2 axes, tiny": ((1, 3, 8, 8), (4, 3, 3, 3)),
    "2 axes": ((1, 32, 40, 40), (64, 32, 3, 3)),
    "2 axes, 1x1": ((1, 64, 28, 28), (64, 64, 1, 1)),
    "2 axes, wide": ((1, 256, 14, 14), (256, 256, 3, 3)),
    "1 axis, depthwise, tiny": ((1, 4, 16), (4, 1, 3)),
    "2 axes, depthwise": ((1, 64, 28, 28), (64, 1, 3, 3)),
    "2 axes, 16 groups": ((1, 64, 28, 28), (64, 4, 3, 3)),
    "2 axes, 8 groups": ((1, 48, 14, 14), (24, 6, 3, 3)),
    "3 axes": ((1, 16, 8, 12, 12), (16, 16, 3, 3, 3)),
}
SIZES = {"tiny": (1, 4, 6), "medium": (1, 32, 28, 28), "large": (4, 64, 56, 56)}
POOLED = {
    "1 axis, tiny": (1, 4, 16), "1 axis": (2, 64, 400), "2 axes, tiny": (1, 3, 8, 8), "2 axes": (1, 32, 56, 56),
    "2 axes, 2 images": (2, 24, 30, 40), "3 axes": (1, 16, 10, 20, 20),
}  # fmt: skip


def _products() -> Iterator[Case]:
    for (shape, (a, b)), (da, db), constant in itertools.product(
        PRODUCTS.items(), ((U8, U8), (U8, S8), (S8, S8)), (False, True)
    ):
        if constant and len(b) > 2:
            continue
        held = "constant" if constant else "data"
        x, w, data = coded(da, *a), coded(db, *b), (0,) if constant else (0, 1)
        columns = (b[-1],) if constant else ()
        name = f"{shape} {da}/{db} {held}"
        yield Case(name, "MatMulInteger", [x, w, point(da), point(db, *columns)], data)
        zeros = point(da), point(db, *columns), point(da)
        q = [x, scale(), zeros[0], w, scale(*columns), zeros[1], scale(size=a[-1] * 0.05), zeros[2]]
        pairs = (0,) if constant else (0, 3)
        yield Case(name, "QLinearMatMul", q, pairs)
        if not constant and len(a) == 2:
            yield Case(f"{name} and scales", "QLinearMatMul", q, tuple(range(8)))
        floats = [x, w, scale(), scale(*columns), point(da), point(db, *columns), real(b[-1])]
        if da in (U8, db):
            yield Case(name, "MatMulIntegerToFloat", floats, data, MICROSOFT)
        if da == U8:
            yield Case(
                name,
                "DynamicQuantizeMatMul",
                [real(*a), w, scale(*columns), point(db, *columns)],
                data,
                MICROSOFT,
            )
        if len(a) == 2:
            gemm = [
                x,
                scale(),
                zeros[0],
                w,
                scale(*columns),
                zeros[1],
                None,
                scale(size=a[-1] * 0.05),
                zeros[2],
            ]
            yield Case(name, "QGemm", gemm, pairs, MICROSOFT, {"transB": 1} if b[0] == b[1] else {})
        if len(a) == 4 and not constant:  # as attention has it: (images, rows, heads, channels)
            p, r = (0, 2, 1, 3), (0, 2, 3, 1)
            x, w = x.transpose(p).copy(), w.transpose(0, 3, 1, 2).copy()
            yield Case(
                f"{name} turned", "QLinearMatMul", [x, *q[1:3], w, *q[4:]], pairs, "", {}, {0: p, 3: r}
            )
            yield Case(
                f"{name} turned", "MatMulInteger", [x, w, point(da), point(db)], data, "", {}, {0: p, 1: r}
            )


def _convolutions() -> Iterator[Case]:
    for (shape, (x, w)), (dx, dw), constant in itertools.product(
        IMAGES.items(), ((U8, U8), (U8, S8), (S8, S8)), (False, True)
    ):
        name = f"{shape} {dx}/{dw} {'constant' if constant else 'data'}"
        a, b, data = coded(dx, *x), coded(dw, *w), (0,) if constant else (0, 1)
        around = {"pads": [w[-1] // 2] * 2 * (len(x) - 2), "group": x[1] // w[1]}
        if dx == U8:
            yield Case(name, "ConvInteger", [a, b, point(dx), point(dw)], data, "", around)
        columns = (w[0],) if constant and dw == S8 else ()
        q = [a, scale(), point(dx), b, scale(*columns), point(dw), scale(size=w[1] * 0.2), point(dx)]
        yield Case(name, "QLinearConv", q, (0,) if constant else (0, 3), "", around)
        if not constant and len(x) == 4:
            yield Case(f"{name} and scales", "QLinearConv", q, tuple(range(8)), "", around)


def _quantizers() -> Iterator[Case]:
    for (size, shape), dtype in itertools.product(SIZES.items(), (U8, S8)):
        x, q, channels = real(*shape), coded(dtype, *shape), shape[1]
        for way, many, more in (
            ("tensor", (), {}), ("axis", (channels,), {"axis": 1}), ("last axis", (shape[-1],), {"axis": -1}),
            ("blocks", (*shape[:-1], shape[-1] // 2), {"axis": -1, "block_size": 2}),
            ("blocks of 1", (shape[0], channels // 2, *shape[2:]), {"axis": 1, "block_size": 2}),
        ):  # fmt: skip
            name = f"{size} {dtype} {way}"
            yield Case(name, "QuantizeLinear", [x, scale(*many), point(dtype, *many)], (0,), "", more)
            yield Case(name, "DequantizeLinear", [q, scale(*many), point(dtype, *many)], (0,), "", more)
        both = [x, scale(), point(dtype)], [q, scale(), point(dtype)]
        yield Case(f"{size} {dtype}", "QuantizeLinear", both[0], (0,), MICROSOFT)
        yield Case(f"{size} {dtype}", "DequantizeLinear", both[1], (0,), MICROSOFT)
    for size, shape in SIZES.items():
        yield Case(size, "DynamicQuantizeLinear", [real(*shape)], (0,))
    for size, shape in {"4096x1024": (4096, 1024), "1024x4096": (1024, 4096)}.items():
        many = (shape[0], shape[1] // 32)
        more = {"axis": 1, "block_size": 32}
        for dtype in (U8, S8):
            yield Case(
                f"{size} {dtype} blocks", "DequantizeLinear", [coded(dtype, *shape), scale(*many), point(dtype, *many)],
                (0,), "", more,
            )  # fmt: skip
            yield Case(
                f"{size} {dtype} blocks", "QuantizeLinear", [real(*shape), scale(*many), point(dtype, *many)], (0,), "",
                more,
            )  # fmt: skip


def _elementwise() -> Iterator[Case]:
    for (size, shape), dtype in itertools.product(SIZES.items(), (U8, S8)):
        x, y, z = scale(), scale(), point(dtype)
        both = [coded(dtype, *shape), x, z, coded(dtype, *shape), y, z, scale(), z]
        row = [*both[:3], coded(dtype, *(n if i == 1 else 1 for i, n in enumerate(shape))), *both[4:]]
        one, name = [coded(dtype, *shape), x, z, y, z], f"{size} {dtype}"
        for op in ("QLinearAdd", "QLinearMul"):
            yield Case(name, op, both, (0, 3), MICROSOFT)
            yield Case(f"{name} by channel", op, row, (0, 3), MICROSOFT)
        yield Case(name, "QLinearConcat", [y, z, *both[:3], *both[3:6]], (2, 5), MICROSOFT, {"axis": 1})
        where = [_rng.random(shape) < 0.5, *both[:3], *both[3:6], y, z]
        if dtype == U8:
            yield Case(name, "QLinearWhere", where, (0, 1, 4), MICROSOFT)
        yield Case(name, "QLinearSigmoid", one, (0,), MICROSOFT)
        yield Case(name, "QLinearLeakyRelu", one, (0,), MICROSOFT, {"alpha": 0.1})
        fine = [*one[:3], np.float32(1 / 256), np.array(0 if dtype == U8 else -128, dtype)]
        for axis in (-1, 1):
            more = {"axis": axis, "opset": 13}
            yield Case(f"{name} axis {axis}", "QLinearSoftmax", fine, (0,), MICROSOFT, more)


def _pools() -> Iterator[Case]:
    for (size, shape), dtype in itertools.product(POOLED.items(), (U8, S8)):
        x, axes = coded(dtype, *shape), len(shape) - 2
        held = [scale(), point(dtype), scale(), point(dtype)]
        last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        for channels_last, image in ((0, x), (1, last)):
            name = f"{size} {dtype} channels {'last' if channels_last else 'first'}"
            own = {"channels_last": channels_last}
            yield Case(name, "QLinearGlobalAveragePool", [image, *held], (0,), MICROSOFT, own)
            for kernel in (2, 3):
                how = {
                    "kernel_shape": [kernel] * axes,
                    "strides": [2] * axes,
                    "pads": [kernel // 3] * 2 * axes,
                }
                yield Case(
                    f"{name} {kernel}", "QLinearAveragePool", [image, *held], (0,), MICROSOFT, own | how
                )
                if not channels_last:
                    yield Case(f"{size} {dtype} {kernel}", "MaxPool", [x], (0,), "", how)


def cases() -> list[Case]:
    """All of them."""
    return [c for part in (_products, _convolutions, _quantizers, _elementwise, _pools) for c in part()]


def _neighbours(values: dict[str, np.ndarray], name: str, a: np.ndarray, nodes: list[Any]) -> str:
    """Put an operator that is recorded before a value; the name of its result."""
    made = f"{name} before"
    if a.dtype == bool or a.dtype not in (U8, S8):
        return name
    values |= {
        f"{name} s": np.float32(0.5),
        f"{name} z": np.zeros((), a.dtype),
        f"{name} o": np.ones(1, a.dtype),
    }
    s, z = f"{name} s", f"{name} z"
    nodes.append(
        helper.make_node("QLinearAdd", [name, s, z, f"{name} o", s, z, s, z], [made], domain=MICROSOFT)
    )
    return made


def model_of(case: Case, between: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    """The model, and what to feed it."""
    nodes: list[Any] = []
    names, values, feeds, given = [], {}, {}, []
    for i, a in enumerate(case.inputs):
        name = "" if a is None else f"i{i}"
        if i in case.data:
            a = feeds[name] = np.asarray(a)
            given.append(
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            )
            name = _neighbours(values, name, a, nodes) if between else name
            if i in case.turned:
                nodes.append(helper.make_node("Transpose", [name], [f"{name} turned"], perm=case.turned[i]))
                name = f"{name} turned"
        elif a is not None:
            values[name] = np.asarray(a)
        names.append(name)
    outputs = ["y", "y1", "y2"] if case.op == "DynamicQuantizeLinear" else ["y"]
    nodes.append(helper.make_node(case.op, names, outputs, domain=case.domain, **case.attributes))
    result = {"DequantizeLinear": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1}.get(case.op)
    if case.op in ("MatMulInteger", "ConvInteger"):
        result = TensorProto.INT32
    if result is None:
        dtypes = [v.dtype for v in case.inputs if v is not None and v.dtype in (U8, S8)] or [U8]
        dtype = dtypes[-1] if case.op != "QLinearConcat" else case.inputs[1].dtype
        result = helper.np_dtype_to_tensor_dtype(dtype)
    if between and result != TensorProto.INT32:
        if result == TensorProto.FLOAT:
            values |= {"t s": np.float32(0.5), "t z": np.zeros((), np.uint8)}
            nodes.append(helper.make_node("QuantizeLinear", ["y", "t s", "t z"], ["t"]))
            result = TensorProto.UINT8
        else:
            dtype = helper.tensor_dtype_to_np_dtype(result)
            values |= {"t s": np.float32(0.5), "t z": np.zeros((), dtype), "t o": np.ones(1, dtype)}
            adds = ["y", "t s", "t z", "t o", "t s", "t z", "t s", "t z"]
            nodes.append(helper.make_node("QLinearAdd", adds, ["t"], domain=MICROSOFT))
        outputs = ["t"]
    info = [helper.make_tensor_value_info(outputs[0], result, None)]
    held = [numpy_helper.from_array(v, n) for n, v in values.items()]
    graph = helper.make_graph(nodes, "g", given, info, held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(), feeds


def is_recorded(model: Any) -> bool:
    """Whether all steps of a model that has run are parts of recorded calls."""
    turns = model._program._turns
    return all(
        hasattr(turn, "group")
        and any(r.tape is not None and r.end == len(turn.members) for r in found.values())
        for turn in turns
        for found in ([turn.group.found[0]] if hasattr(turn, "group") else [{}])
    )


def measured(case: Case, between: bool, repeat: int) -> tuple[float, float, bool, bool]:
    """Microseconds of both, whether all is recorded, and whether the results are equal."""
    from lowgemm.onnx_run import Model

    source, feeds = model_of(case, between)
    plain = session(source, 1, "ORT_DISABLE_ALL").run(None, feeds)
    ours, theirs = Model(source, num_threads=1), session(source, 1)
    same = all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for _ in range(4)
        for a, b in zip(ours.run(None, feeds), plain, strict=True)
    )
    calls = [lambda: ours.run(None, feeds), lambda: theirs.run(None, feeds)]
    counts = []
    for call in calls:
        call()
        begin = time.process_time()
        call()
        counts.append(max(1, int(4e-4 / max(1e-6, time.process_time() - begin))))

    def many(call: Any, count: int) -> Any:
        def run() -> None:
            for _ in range(count):
                call()  # nothing is kept, so that its memory can be used again

        return run

    found = alternate([many(c, n) for c, n in zip(calls, counts, strict=True)], repeat, time.process_time)
    mine, other = (1e3 * t / n for t, n in zip(found, counts, strict=True))
    return mine, other, is_recorded(ours), same


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="cases whose operator or name has all of these words")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--above", type=float, default=0.0, help="print no row with a smaller ratio")
    parser.add_argument("--list", action="store_true", help="only name the cases")
    options = parser.parse_args()
    words = options.only.split()
    for case in cases():
        name = f"{case.domain.removeprefix('com.')}::{case.op} {case.name}".removeprefix("::")
        if not all(w in name.split() or w == case.op for w in words):
            continue
        if options.list:
            print(name)
            continue
        text, largest = "", 0.0
        for between in (False, True):
            try:
                mine, other, recorded, same = measured(case, between, options.repeat)
            except Exception as error:
                text += f" | {type(error).__name__}: {' '.join(str(error).split())[-60:]}"
                largest = 1e9
                continue
            largest = max(largest, mine / other)
            text += f" | {mine:8.1f} / {other:8.1f} {mine / other:5.2f}" + (
                "" if recorded or not between else " no"
            )
            text += "" if same else " differ"
        if largest >= options.above:
            print(f"{name:62s}{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
