"""Fuzz steps for copies: what the session keeps is copied or sent through a pickle, the original is deleted,
and the copy goes on.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

import lowgemm as lg
from lowgemm import blockwise as bw
from lowgemm import quantization as qn
from lowgemm import reference
from lowgemm.output.check import check_pipeline

from . import networks, pipelines
from .arrays import integers
from .outcomes import same
from .packages import floats


def _pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda x: pickle.loads(pickle.dumps(x, protocol))


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy, "deepcopy": copy.deepcopy, "pickle 2": _pickled(2), "pickle 4": _pickled(4),
    "pickle 5": _pickled(5),
}  # fmt: skip


def renewed(s: Any, x: Any) -> Any:
    """A copy of `x`, or `x` itself where a copy is refused: with a sentence, before anything is made."""
    way = s.r.choice(list(WAYS))
    try:
        return s.call("copies", WAYS[way], x)
    except TypeError as error:
        s.refused("copies", error)
        return x


def churned() -> None:
    """Freed memory is used for other things: who still reads there reads something else."""
    for size in (16, 100, 1000, 5000, 70_000):
        [np.full(size, 0xA5, np.uint8) for _ in range(20)]


def copied_product(s: Any) -> None:
    """A packed matrix and a pipeline that were used before; the copies take their places."""
    if not s.pool:
        return
    at = s.r.randrange(len(s.pool))
    a, b, rhs, options = s.pool[at]
    s.pool[at] = a, b, renewed(s, rhs), renewed(s, options)
    del rhs, options
    churned()
    rhs, options = s.pool[at][2:]
    s.expect(same(rhs.to_array(), b), "a copied PackedRhs holds other values")
    plain = {k: v for k, v in options.items() if k != "num_threads"}
    for _ in range(2):
        got = s.call("gemm", lg.gemm, a, rhs, **options)
        s.expect(same(got, reference.gemm(a, b, **plain)), "gemm: copied operands")


def copied_plan(s: Any) -> None:
    """A plan and its operands; the copies take their places."""
    if not s.plans:
        return
    at = s.r.randrange(len(s.plans))
    planned, a, rhs, output, b = s.plans[at]
    a, kernel = a.copy(), lg.config.kernel
    if isinstance(rhs, lg.PackedRhs):
        lg.config.kernel = (
            rhs.kernel
        )  # a pickle packs, and plans, for the kernel of the day: here the same for both
    rhs = rhs.copy() if isinstance(rhs, np.ndarray) else renewed(s, rhs)
    s.plans[at] = renewed(s, planned), a, rhs, output, b
    lg.config.kernel = kernel
    del planned
    churned()
    planned = s.plans[at][0]
    zeros = {"lhs_zero_point": pipelines.int32(s.r), "rhs_zero_point": pipelines.int32(s.r)}
    for _ in range(2):
        a[...] = integers(s.r, s.g, a.dtype, a.shape)
        got = s.call("planned", planned, a, rhs, **zeros)
        s.expect(same(got, reference.gemm(a, b, output=output, **zeros)), "planned: a copied plan")


def copied_pipeline(s: Any) -> None:
    """A pipeline that nothing else holds."""
    acc = integers(s.r, s.g, np.int32, (s.size(), s.size()))
    output = pipelines.sound(s.r, s.g, *acc.shape)
    stages, dtype = check_pipeline(output, *acc.shape)
    expected = reference.apply_pipeline(acc, stages).astype(dtype)
    del stages
    if s.r.random() < 0.5:  # compiled parameters are made at the first use, and may be copied too
        s.call("requantize", lg.requantize, acc, output)
    output = renewed(s, output)
    churned()
    s.expect(
        same(s.call("requantize", lg.requantize, acc, output), expected), "requantize: a copied pipeline"
    )


def copied_layer(s: Any) -> None:
    """A layer of `nn`, used before or not."""
    cls, args, named, shape = networks._layer(s)
    made = s.call("nn", cls, *args, **named)
    x = integers(s.r, s.g, made.input_qparams.dtype, shape)
    expected = made.reference(x)
    if s.r.random() < 0.5:
        s.call("nn", made, x)
    made = renewed(s, made)
    del args, named
    churned()
    for _ in range(2):
        s.expect(same(s.call("nn", made, x), expected), f"nn: a copied layer: {made!r:.200}")


def copied_optimizer(s: Any) -> None:
    """An optimizer in the middle of its work: the copy does what the original would have done."""
    r = s.r
    cls = r.choice((bw.Adam, bw.AdamW, bw.Lion, bw.RMSprop, bw.Adagrad))
    size = r.choice((3, 300))
    start, gradients = floats(s, size), [floats(s, size) for _ in range(3)]
    options = {"min_8bit_size": r.choice((0, 10**6))}
    right, params = start.copy(), start.copy()
    straight = s.call("blockwise", cls, [right], **options)
    for gradient in gradients:
        s.call("blockwise", straight.step, [gradient])
    other = s.call("blockwise", cls, [params], **options)
    s.call("blockwise", other.step, [gradients[0]])
    other = renewed(s, other)
    del params
    churned()
    for gradient in gradients[1:]:
        s.call("blockwise", other.step, [gradient])
    s.expect(same(other.params[0], right), f"{cls.__name__}: a copy steps elsewhere")


def copied_blocks(s: Any) -> None:
    """What `blockwise` and `quantization` make."""
    r = s.r
    kind = r.randrange(5)
    m, k, n = (max(1, s.size()) for _ in range(3))
    weight = floats(s, k * n).reshape(k, n)
    if kind == 0:
        made = s.call(
            "blockwise", bw.quantize_blockwise, weight, r.choice(("dynamic", "nf4")), nested=r.random() < 0.3
        )
        use = bw.dequantize_blockwise
    elif kind == 1:
        made = s.call(
            "blockwise", bw.pack_rhs_4bit, weight, r.choice(("nf4", "int4")), group=r.choice((None, 8, 33))
        )
        lhs = integers(r, s.g, np.int8, (m, k))
        use = lambda w: bw.gemm_4bit(lhs, w)  # noqa: E731
    elif kind == 2:
        made, x = s.call("blockwise", bw.MixedWeight, weight), floats(s, m * k).reshape(m, k)
        use = lambda w: bw.mixed_linear(x, w, threshold=6.0)  # noqa: E731
    elif kind == 3:
        made = s.call(
            "quantization", qn.choose_qparams, -1.0, r.uniform(0.1, 9), r.choice((np.int8, np.uint8))
        )
        use = lambda p: qn.quantize(weight, p)  # noqa: E731
    else:
        made = r.choice((qn.MinMax, qn.Percentile, qn.MovingAverage, qn.Entropy))(np.int8)
        made.observe(weight)

        def use(observer: Any) -> Any:
            p = observer.qparams()
            return np.array([float(p.scale), float(p.zero_point)])

    expected = use(made)
    made = renewed(s, made)
    churned()
    family = "blockwise" if kind < 3 else "quantization"
    s.expect(
        same(s.call(family, use, made), expected), f"a copy of {type(made).__name__} gives something else"
    )


STEPS = (
    ("copied_product", 4), ("copied_plan", 4), ("copied_pipeline", 3), ("copied_layer", 1),
    ("copied_optimizer", 1), ("copied_blocks", 2),
)  # fmt: skip
