"""Products with 4-bit weights side by side: lowgemm, onnxruntime's MatMulNBits, bitsandbytes, NumPy in
float32; one process.

    pip install torch==2.13.0 onnx onnxruntime && pip install bitsandbytes==0.50.2 --no-deps
    python asv_bench/compare_4bit.py --threads 1 2

Weights of 4096 x 4096, x of m rows. onnxruntime codes x to int8 (accuracy_level 4), as lowgemm does with a
float x. bitsandbytes decodes NF4 and multiplies in float32. Figures are medians in milliseconds of calls
taken in turn.
"""

from __future__ import annotations

import numpy as np
from compare_blockwise import by_threads, in_turn

SIZE = 4096


def onnx_session(group: int, threads: int):
    """onnxruntime's 4-bit product with random weights."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    g = np.random.default_rng(0)
    blocks = SIZE // group
    codes = g.integers(0, 256, (SIZE, blocks, group // 2), dtype=np.uint8)
    scales = g.random(SIZE * blocks, dtype=np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=SIZE, N=SIZE, bits=4,
        block_size=group, accuracy_level=4,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", SIZE])],
        [onnx.numpy_helper.from_array(codes, "b"), onnx.numpy_helper.from_array(scales, "s")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def report(threads: int, seconds: float) -> None:
    """Print the table of one number of threads."""
    import bitsandbytes
    import bitsandbytes.functional as bnb
    import onnxruntime
    import torch

    import lowgemm
    from lowgemm.blockwise import MixedWeight, gemm_4bit, mixed_linear, pack_rhs_4bit

    torch.set_num_threads(threads)
    g = np.random.default_rng(0)
    weight = g.standard_normal((SIZE, SIZE), dtype=np.float32)
    nf4, int4 = pack_rhs_4bit(weight, "nf4", group=64), pack_rhs_4bit(weight, "int4", group=128)
    int8 = lowgemm.pack_rhs(g.integers(-128, 128, (SIZE, SIZE), dtype=np.int8))
    mixed = MixedWeight(weight)
    session = onnx_session(128, threads)
    coded, state = bnb.quantize_4bit(torch.from_numpy(weight.T.copy()), blocksize=64, quant_type="nf4")
    t = {"num_threads": threads}
    print(
        f"\n## {threads} thread(s); torch {torch.__version__}, bitsandbytes {bitsandbytes.__version__}, "
        f"onnxruntime {onnxruntime.__version__}\n"
    )
    names = None
    for m in (1, 16, 256):
        x = g.standard_normal((m, SIZE), dtype=np.float32)
        outliers = x.copy()
        outliers[:, [7, 700, 3000]] *= 20
        q, tensor = np.rint(np.clip(x * 40, -127, 127)).astype(np.int8), torch.from_numpy(x)
        calls = {
            "NumPy float32": lambda x=x: x @ weight,
            "bitsandbytes NF4": lambda y=tensor: torch.nn.functional.linear(
                y, bnb.dequantize_4bit(coded, state)
            ),
            "onnxruntime int4, 128": lambda x=x: session.run(None, {"x": x}),
            "int4, 128": lambda x=x: gemm_4bit(x, int4, **t),
            "NF4, 64": lambda x=x: gemm_4bit(x, nf4, **t),
            "int8 x int4, 128": lambda q=q: gemm_4bit(q, int4, **t),
            "int8 x int8": lambda q=q: lowgemm.gemm(q, int8, **t),
            "LLM.int8(), 3 outliers": lambda x=outliers: mixed_linear(x, mixed, **t),
        }
        found = in_turn(calls, seconds)
        if names is None:
            names = list(found)
            print(f"| m | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
        print(f"| {m} | {' | '.join(f'{found[k]:.2f}' for k in names)} |", flush=True)


if __name__ == "__main__":
    by_threads(__file__, __doc__.splitlines()[0], report, 2.0, NUMBA_NUM_THREADS="2")
