"""Arrays that are equal to plain ones but not made like them: out of a pickle, mapped from a file, read-only,
of a subclass.

Every public function that takes arrays gives for these what it gives for plain ones, and says so for every
argument. The arrays are of `np.ndarray`'s own kind, so nothing here is a conversion: an `is` between dtypes,
an exact type or a writable signature shows.
"""

from __future__ import annotations

import functools
import importlib.util
import pickle
from typing import Any

import numba
import numpy as np
import pytest

import lowgemm
from lowgemm import blockwise as bw
from lowgemm import fixedpoint, nn, quantization
from lowgemm.compat import gemmlowp
from lowgemm.compat import onnx as compat_onnx
from lowgemm.quantization import QParams

G = np.random.default_rng(21)
X = G.integers(0, 256, (9, 40), dtype=np.uint8)
W = G.integers(-128, 128, (40, 24), dtype=np.int8)
ACC = G.integers(-(2**20), 2**20, (9, 24)).astype(np.int32)
REAL = G.standard_normal((9, 40)).astype(np.float32)
IMAGES = G.integers(0, 256, (2, 6, 6, 4), dtype=np.uint8)
BIAS = np.arange(24, dtype=np.int32)
P = QParams(0.05, 3, "uint8")
Q = QParams(np.full(24, 0.01), 0, "int8", -1)


class Subclass(np.ndarray):
    """Its own indexing and reshaping must not be used."""

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("the subclass's own indexing was used")

    def reshape(self, *shape: Any, **options: Any) -> Any:
        raise AssertionError("the subclass's own reshape was used")


def mapped(folder: Any, a: np.ndarray) -> np.ndarray:
    path = folder / f"{len(list(folder.iterdir()))}.npy"  # one that nothing is mapped from
    np.save(path, a)
    return np.load(path, mmap_mode="r")


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.fixture(params=["pickled", "mapped", "read-only", "subclass"])
def foreign(request, tmp_path):
    """Makes a foreign array of a plain one."""
    return {
        "pickled": lambda a: pickle.loads(pickle.dumps(a)),
        "mapped": functools.partial(mapped, tmp_path),
        "read-only": read_only,
        "subclass": lambda a: a.view(Subclass),
    }[request.param]


@numba.njit
def in_compiled_code(x, w):
    return lowgemm.gemm(x, w, lhs_zero_point=3)


def adam(p: np.ndarray, g: np.ndarray) -> Any:
    o = bw.Adam([p], min_8bit_size=0)
    o.step([g])
    return p, o.state_dict()["0/m/codes"]


def into(result: Any, call: Any) -> Any:
    call(result)
    return result


#: A call, and the plain arrays it takes.
CALLS: dict[str, tuple[Any, tuple[np.ndarray, ...]]] = {
    "gemm": (lambda x, w, z: lowgemm.gemm(x, w, rhs_zero_point=z), (X, W, BIAS)),
    "gemm, packed": (lambda x, w: lowgemm.gemm(x, lowgemm.pack_rhs(w)), (X, W)),
    "gemm with stages": (lambda x, w, b: lowgemm.gemm(x, w, output=lowgemm.BiasAddition(b)), (X, W, BIAS)),
    "plan": (lambda x, w: lowgemm.plan(X, W)(x, w), (X, W)),
    "planned with": (lambda x, w: lowgemm.plan(x, w)(X, W), (X, W)),
    "explain": (lambda x, w: str(lowgemm.explain(x, w)), (X, W)),
    "requantize": (lambda a, s: lowgemm.requantize(a, lowgemm.Requantize(s, 0, np.int8)),
                   (ACC, np.full(24, 1e-4))),
    "table": (lambda a, t: lowgemm.requantize(a, lowgemm.Lut(t)), (ACC, np.arange(256, dtype=np.uint8))),
    "function": (lambda a, t: lowgemm.requantize(a,
                                                 lowgemm.Custom(lambda acc, row, col, t: acc - t[col], (t,))),
                                                 (ACC, BIAS)),
    "gemmlowp": (
        lambda x, w: into(np.zeros((9, 24), np.int32),
                          lambda r: gemmlowp.gemm_with_output_pipeline(x, w, r, 1, 2)),
        (X, W.view(np.uint8)),
    ),
    "gemmlowp's map": (lambda b: gemmlowp.MatrixMap(b, "col", 9, 24).view().tolist(), (ACC.ravel(),)),
    "matmul_integer": (compat_onnx.matmul_integer, (X, W, np.uint8(3)[None], BIAS.astype(np.int8))),
    "quantize_linear": (lambda x, s: compat_onnx.quantize_linear(x, s, np.int8(1)),
                        (REAL, np.float32([0.1])[0:1].reshape(()))),
    "dynamic_linear": (lambda x, w: nn.dynamic_linear(x, w, 0.01), (REAL, W)),
    "weight_only_linear": (lambda x, w: nn.weight_only_linear(x, w, 0.01), (REAL, W)),
    "linear layer": (lambda w, b, x: nn.QuantizedLinear(w, b, P, Q, P)(x), (W, BIAS, X)),
    "network": (lambda x: nn.QuantizedSequential([nn.QuantizedLinear(W, BIAS, P, Q, P)])(x), (X,)),
    "network on floats": (lambda x: nn.QuantizedSequential([nn.QuantizedLinear(W, BIAS, P, Q, P)]).predict(x),
                          (REAL,)),
    "convolution": (lambda w, x: nn.QuantizedConv2d(w, None, P, QParams(0.01), P)(x),
                    (W[:36].reshape(3, 3, 4, 24).copy(), IMAGES)),
    "max pool": (lambda x: nn.QuantizedMaxPool2d(P, 2)(x), (IMAGES,)),
    "quantize": (lambda x: quantization.quantize(x, P), (REAL,)),
    "dequantize": (lambda x: quantization.dequantize(x, P), (X,)),
    "observer": (lambda x: quantization.MeanSquaredError().observe(x).range(), (REAL,)),
    "block-wise": (lambda x: bw.dequantize_blockwise(bw.quantize_blockwise(x, "nf4")), (REAL,)),
    "block-wise by hand": (
        lambda c, s: bw.dequantize_blockwise(bw.BlockwiseArray(c, s, 64, "dynamic", (64,))),
        (np.arange(64, dtype=np.uint8), np.ones(1, np.float32)),
    ),
    "book": (lambda b: bw.quantize_blockwise(REAL, b).codes, (np.linspace(-1, 1, 9, dtype=np.float32),)),
    "mixed_linear": (lambda x, w: bw.mixed_linear(x, bw.MixedWeight(w)), (REAL, REAL.T.copy())),
    "gemm_4bit": (lambda x, w: bw.gemm_4bit(x, bw.pack_rhs_4bit(w)), (REAL, REAL.T.copy())),
    "fixed point": (lambda a, b: fixedpoint.saturating_rounding_doubling_high_mul(a, b),
                    (ACC, ACC[::-1].copy())),
    "in compiled code": (in_compiled_code, (X, W)),
    "gradient": (lambda g: adam(np.zeros(40 * 9, np.float32), g), (REAL.ravel().copy(),)),
}  # fmt: skip

if importlib.util.find_spec("dask") is not None:
    import lowgemm.dask

    CALLS["dask"] = (lambda x, w: lowgemm.dask.gemm(x, w).compute(scheduler="synchronous"), (X, W))


def plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", CALLS)
def test_foreign_arrays_give_the_same(name, foreign):
    call, arrays = CALLS[name]
    expected = plain(call(*arrays))
    made = [foreign(a) for a in arrays]
    if isinstance(made[0], Subclass) and name in ("in compiled code",):
        made = [np.asarray(a) for a in made]  # Numba, not lowgemm, decides about types
    assert plain(call(*made)) == expected
    for i in range(len(arrays)):
        assert plain(call(*arrays[:i], made[i], *arrays[i + 1 :])) == expected


def test_parameters_and_results_of_another_kind(tmp_path):
    """What is written to: a mapped file, a subclass, an array out of a pickle."""
    start = G.standard_normal(5000).astype(np.float32)
    g = G.standard_normal(5000).astype(np.float32)
    expected = plain(adam(start.copy(), g))
    np.save(tmp_path / "p.npy", start)
    for p in (
        np.load(tmp_path / "p.npy", mmap_mode="r+"),
        pickle.loads(pickle.dumps(start)),
        start.copy().view(Subclass),
    ):
        assert plain(adam(p, g)) == expected
    want = lowgemm.gemm(X, W)
    np.save(tmp_path / "o.npy", np.zeros_like(want))
    for make in (
        lambda: np.load(tmp_path / "o.npy", mmap_mode="r+"),
        lambda: pickle.loads(pickle.dumps(np.zeros_like(want))),
        lambda: np.zeros_like(want).view(Subclass),
    ):
        for call in (
            lambda out: lowgemm.gemm(X, W, out=out),
            lambda out: lowgemm.plan(X, W)(X, W, out),
            lambda out: lowgemm.requantize(want, [], out=out),
            lambda out: into(out, lambda r: gemmlowp.gemm_with_output_pipeline(X, W.view(np.uint8), r, 0, 0)),
        ):
            out = make()
            assert call(out) is out
            right = lowgemm.gemm(X, W.view(np.uint8)) if np.asarray(out).tobytes() != want.tobytes() else want
            assert np.asarray(out).tobytes() == right.tobytes()


def test_texts_and_enumerations():
    """An option is the same as text and as a member of an enumeration with that text, be it a `str` or not;
    others are refused.
    """
    import enum

    class Text(str, enum.Enum):  # what `str` prints of one differs from its value
        TANH, TFLITE, RELU, IGNORE, RAISE, NF4 = "tanh", "tflite", "relu", "ignore", "raise", "nf4"

    class Plain(enum.Enum):
        TANH, TFLITE, RELU, IGNORE, RAISE, NF4 = "tanh", "tflite", "relu", "ignore", "raise", "nf4"

    x = np.linspace(-3, 3, 40, dtype=np.float32)
    calls = {
        "kind": lambda v: quantization.s_shaped_input(v, -2.0, 3.0).scale.tolist(),
        "rounding": lambda v: [lowgemm.Requantize(0.1, 0, np.int8, v),
                               nn.QuantizedLinear(W, None, P, Q, P, rounding=v)(X).tolist()],
        "activation": lambda v: [nn.QuantizedLinear(W, None, P, Q, P, activation=v)(X).tolist(),
                                 nn.QuantizedAdd(P, P, P, activation=v).activation],
        "nonfinite": lambda v: quantization.MinMax(nonfinite=v).settings()["nonfinite"],
        "overflow": lambda v: lowgemm.gemm(X, W, overflow=v).tolist(),
        "code": lambda v: bw.quantize_blockwise(x, v).codes.tolist(),
    }  # fmt: skip
    for (name, call), member in zip(
        calls.items(), ("TANH", "TFLITE", "RELU", "IGNORE", "RAISE", "NF4"), strict=True
    ):
        expected = call(Plain[member].value)
        assert call(Text[member]) == call(Plain[member]) == call(np.str_(Plain[member].value)) == expected
        assert type(call(Text[member])) is type(expected)
        for wrong in ("no such", Plain.RELU if member != "RELU" else Plain.NF4, None, 3, ["tanh"]):
            if name == "code" and not isinstance(wrong, (str, Plain)):
                continue  # numbers and None are no texts there
            with pytest.raises(ValueError, match=rf"^{name}: expected '"):
                call(wrong)
