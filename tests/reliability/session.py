"""A random program that uses lowgemm, step by step, and compares every outcome with the reference; see
`fuzz.py`.
"""

from __future__ import annotations

import collections
import importlib.util
import random
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

import lowgemm as lg
from lowgemm import kernels

from . import convolutions, copies, layers, networks, packages, pipelines, plans, products, requantized_sums
from .arrays import JUNK, Subclass, integers, spaced
from .outcomes import DOCUMENTED, NAMED, Wrong

FAMILIES: list[Any] = [products, convolutions, plans, requantized_sums, layers, networks, packages, copies]
#: Families that need more than lowgemm does, by what they need; what is not here is printed by `fuzz.py`.
MISSING = []
for needed, family in {"dask": "chunks", "onnx": "graphs"}.items():
    if importlib.util.find_spec(needed):
        FAMILIES.append(importlib.import_module(f".{family}", __package__))
    else:
        MISSING.append(needed)
if numba.config.DISABLE_JIT:
    MISSING.append("numba's compiler")
else:
    FAMILIES.append(importlib.import_module(".compiled", __package__))


class Session:
    """A program that uses lowgemm: it keeps arrays, packed matrices, plans and pipelines, and uses them
    again.
    """

    def __init__(self, seed: int, largest: int = 70) -> None:
        self.r, self.g = random.Random(seed), np.random.default_rng(seed)
        self.largest = largest
        self.counts: collections.Counter[str] = collections.Counter()
        self.pool: list[tuple[np.ndarray, np.ndarray, lg.PackedRhs, Any]] = []
        self.plans: list[tuple[Any, np.ndarray, Any, Any, np.ndarray]] = []
        self.names = [k.name for k in kernels.all_kernels() if not kernels.why_not(k)]

    # ---- parts ------------------------------------------------------------------------------------------
    def size(self) -> int:
        r = self.r
        return r.choice((0, 1, 1, 2, 3, r.randrange(1, 20), r.randrange(1, 20), r.randrange(1, self.largest)))

    def operand(self, rows: int, cols: int) -> np.ndarray:
        return integers(self.r, self.g, self.r.choice((np.uint8, np.int8)), (rows, cols))

    def zero(self, size: int) -> Any:
        r = self.r
        return r.choice(
            (
                0,
                0,
                3,
                128,
                -128,
                pipelines.int32(r),
                np.int64(5),
                np.uint8(200),
                pipelines.vector(r, self.g, size),
            )
        )

    def result_array(self, shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """An `out` and the buffer around it."""
        a = np.full(shape, 55, dtype)
        kind = self.r.randrange(4)
        if kind == 0:
            return a, a
        if kind == 1:
            return a.view(Subclass), a
        return spaced(self.r, a)

    def call(self, family: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.counts[family] += 1
        return function(*args, **kwargs)

    def expect(self, ok: bool, what: str) -> None:
        if not ok:
            raise Wrong(what)

    def refused(self, family: str, error: BaseException) -> None:
        self.counts[family + " refused"] += 1
        if isinstance(error, MemoryError):
            return
        self.expect(bool(NAMED.match(str(error))), f"the message names no argument: {error!r:.300}")

    def problem(self) -> tuple[np.ndarray, np.ndarray]:
        """Operands, sometimes stacks or vectors."""
        r = self.r
        m, k, n = self.size(), self.size(), self.size()
        a, b = self.operand(m, k), self.operand(k, n)
        kind = r.randrange(12)
        if kind == 0:
            a = np.stack([a, self.operand(m, k).astype(a.dtype)])
        elif kind == 1:
            b = np.stack([b, b[::-1], b])[:, None] if r.random() < 0.5 else np.broadcast_to(b, (3, *b.shape))
        elif kind == 2 and m:
            a = a[0]
        elif kind == 3 and n:
            b = b[:, 0]
        elif kind == 4 and m and k:
            a = np.broadcast_to(a[:1], a.shape)
        return a, b

    def options(self, a: np.ndarray, b: np.ndarray) -> tuple[dict[str, Any], int, int]:
        m, n = (a.shape[-2] if a.ndim > 1 else 1), (b.shape[-1] if b.ndim > 1 else 1)
        options: dict[str, Any] = {}
        if self.r.random() < 0.5:
            options.update(lhs_zero_point=self.zero(m), rhs_zero_point=self.zero(n))
        if self.r.random() < 0.6:
            options["output"] = pipelines.sound(self.r, self.g, m, n)
        return options, m, n

    def odd_out(self, a: np.ndarray, m: int, n: int) -> tuple[Any, np.ndarray]:
        r = self.r
        good = np.full((m, n), 55, np.int32)
        kind = r.randrange(12)
        if kind == 0:
            return r.choice(JUNK), good
        if kind == 1:
            return good.astype(">i4"), good
        if kind == 2:
            good.flags.writeable = False
            return good, good
        if kind == 3:
            return good[..., None], good
        if kind == 4:
            return good.astype(r.choice((np.int64, np.uint8, np.float32, object))), good
        if kind == 5:
            raw = np.full(good.nbytes + 9, 55, np.uint8)
            return raw[1 : 1 + good.nbytes].view(np.int32).reshape(m, n), raw
        if kind == 6:
            return np.lib.stride_tricks.as_strided(good, (m, n), (4, 4)) if good.size >= m + n else good, good
        if kind == 7:
            return np.broadcast_to(good[:1], (m, n)), good
        if kind == 8:
            return np.full((m + 1, n), 55, np.int32), good
        if kind == 9:
            return good.tolist(), good
        if kind == 10 and a.flags.c_contiguous and a.flags.writeable and a.size >= 4 * m * n and a.ndim:
            return a.reshape(-1)[: 4 * m * n].view(np.int32).reshape(m, n), a
        return np.ma.array(good, mask=np.zeros(good.shape, bool)), good

    # ---- settings ---------------------------------------------------------------------------------------
    def settings(self) -> None:
        r = self.r
        lg.config.kernel = r.choice((None, *self.names))
        lg.config.num_threads = r.choice((None, 1, 2))
        if r.random() < 0.05:  # a refused setting is an error when it is set, and changes nothing
            name, value = r.choice(
                (
                    ("kernel", "no such kernel"),
                    ("kernel", ""),
                    ("kernel", 3),
                    ("num_threads", 0),
                    ("num_threads", 1.5),
                )
            )
            before = getattr(lg.config, name)
            try:
                self.call("config odd", setattr, lg.config, name, value)
            except DOCUMENTED as error:
                self.refused("config odd", error)
            self.expect(getattr(lg.config, name) == before, f"config: {name} = {value!r} was taken")

    def step(self) -> None:
        """One random step: a call or a few."""
        name = self.r.choices(NAMES, WEIGHTS)[0]
        self.take(name)

    def take(self, name: str) -> None:
        """The step of that name."""
        STEPS[name](self)


STEPS: dict[str, Callable[[Session], None]] = {"settings": Session.settings}
WEIGHTS = [1]
for _family in FAMILIES:
    for _name, _weight in _family.STEPS:
        assert _name not in STEPS, _name
        STEPS[_name] = getattr(_family, _name)
        WEIGHTS.append(_weight)
NAMES = list(STEPS)


def made(session: Session) -> int:
    """Calls made so far."""
    return sum(v for k, v in session.counts.items() if not k.endswith("refused"))


def refusals(session: Session) -> int:
    """Calls that ended in a documented exception."""
    return sum(v for k, v in session.counts.items() if k.endswith("refused"))
