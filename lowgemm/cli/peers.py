"""Other int8 products, for comparison; each is optional and its numbers are checked for exactness.

A peer is a function of (lhs uint8/int8, rhs int8/uint8, threads) that returns a callable, or raises
ImportError when it is not installed, or ValueError when it has no such product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

#: What requantizing peers multiply the sums by.
SCALE = 1e-3
Maker = Callable[[np.ndarray, np.ndarray, int], Callable[[], Any]]


def _onnx_session(op: str, lhs: np.ndarray, rhs: np.ndarray, threads: int) -> Any:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    kinds = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}
    shape = [*lhs.shape[:-1], rhs.shape[-1]]
    weights = [numpy_helper.from_array(np.ascontiguousarray(rhs), "b")]
    if op == "MatMulInteger":
        node = helper.make_node(op, ["a", "b"], ["y"])
        result = TensorProto.INT32
    else:
        scale = np.float32(SCALE)
        for name, value in (
            ("as", np.float32(1)), ("az", lhs.dtype.type(0)), ("bs", np.float32(1)),
            ("bz", rhs.dtype.type(0)),
            ("ys", np.float32(1) / scale), ("yz", lhs.dtype.type(0)),
        ):  # fmt: skip
            weights.append(numpy_helper.from_array(np.asarray(value), name))
        node = helper.make_node(op, ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])
        result = kinds[lhs.dtype]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("a", kinds[lhs.dtype], list(lhs.shape))],
        [helper.make_tensor_value_info("y", result, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"a": np.ascontiguousarray(lhs)}
    return lambda: session.run(None, feed)[0]


def onnxruntime_matmul_integer(lhs: np.ndarray, rhs: np.ndarray, threads: int) -> Any:
    """onnxruntime MatMulInteger with the rhs as a constant, which it packs once."""
    if lhs.dtype != np.uint8:
        raise ValueError("onnxruntime's CPU MatMulInteger wants a uint8 lhs")
    return _onnx_session("MatMulInteger", lhs, rhs, threads)


def torch_int_mm(lhs: np.ndarray, rhs: np.ndarray, threads: int) -> Any:
    """torch._int_mm, int8 by int8 to int32."""
    import torch

    if lhs.dtype != np.int8 or rhs.dtype != np.int8 or lhs.ndim != 2:
        raise ValueError("torch._int_mm is int8 by int8, two matrices")
    torch.set_num_threads(threads)
    a, b = torch.from_numpy(np.ascontiguousarray(lhs)), torch.from_numpy(np.ascontiguousarray(rhs))
    return lambda: torch._int_mm(a, b).numpy()


def numkong_dot(lhs: np.ndarray, rhs: np.ndarray, threads: int) -> Any:
    """numkong's packed int8 product."""
    import numkong as nk

    if lhs.dtype != rhs.dtype or threads != 1 or lhs.ndim != 2:
        raise ValueError("numkong multiplies two matrices of one dtype, on one thread")
    packed = nk.dots_pack(np.ascontiguousarray(rhs.T))
    a = np.ascontiguousarray(lhs)
    return lambda: np.asarray(nk.dots_packed(a, packed))


#: Peers with int32 results: name, operand dtypes, maker.
EXACT_PEERS: list[tuple[str, str, str, Maker]] = [
    ("onnxruntime u8u8", "uint8", "uint8", onnxruntime_matmul_integer),
    ("onnxruntime u8s8", "uint8", "int8", onnxruntime_matmul_integer),
    ("torch _int_mm s8s8", "int8", "int8", torch_int_mm),
    ("numkong s8s8", "int8", "int8", numkong_dot),
]


def onnxruntime_qlinear(lhs: np.ndarray, rhs: np.ndarray, threads: int) -> Any:
    """onnxruntime QLinearMatMul to uint8, constant rhs."""
    return _onnx_session("QLinearMatMul", lhs, rhs, threads)


def torch_quantized_linear(lhs: np.ndarray, rhs: np.ndarray, threads: int) -> Any:
    """torch.ops.quantized.linear, quint8 by packed qint8 to quint8."""
    import torch

    if lhs.dtype != np.uint8 or rhs.dtype != np.int8 or rhs.ndim != 2:
        raise ValueError("torch's quantized linear is quint8 by one qint8 matrix")
    torch.set_num_threads(threads)
    x = torch._make_per_tensor_quantized_tensor(torch.from_numpy(np.ascontiguousarray(lhs)), 1.0, 0)
    w = torch._make_per_tensor_quantized_tensor(torch.from_numpy(np.ascontiguousarray(rhs.T)), 1.0, 0)
    packed = torch.ops.quantized.linear_prepack(w, None)
    return lambda: torch.ops.quantized.linear(x, packed, 1 / SCALE, 0).int_repr().numpy()


#: Peers with requantized uint8 results.
REQUANTIZING_PEERS: list[tuple[str, str, str, Maker]] = [
    ("onnxruntime QLinearMatMul u8u8", "uint8", "uint8", onnxruntime_qlinear),
    ("onnxruntime QLinearMatMul u8s8", "uint8", "int8", onnxruntime_qlinear),
    ("torch quantized linear u8s8", "uint8", "int8", torch_quantized_linear),
]
#: How they round; see `lowgemm.Requantize`.
ROUNDING = {
    "onnxruntime QLinearMatMul u8u8": "onnx",
    "onnxruntime QLinearMatMul u8s8": "onnx",
    "torch quantized linear u8s8": "torch",
}
