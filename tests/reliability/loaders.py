"""Bad ``.npz`` files: cut, flipped, spliced, and with headers that lie. Each raises ValueError or is read
correctly.

python -m tests.reliability.loaders --files 100000
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import io
import math
import pathlib
import pickle
import random
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

import lowgemm as lg
from lowgemm import blockwise, nn, npz
from lowgemm.quantization import QParams

from . import session

if not numba.config.DISABLE_JIT:
    from . import compiled

RAN: list[str] = []


def ran(text: str) -> None:
    """What a pickle would run."""
    RAN.append(text)


class Payload:
    """Unpickled, it calls `ran`."""

    def __reduce__(self) -> Any:
        return ran, ("code of the file ran",)


def packed_file(seed: int) -> bytes:
    """A file as `save_packed` writes it."""
    g = np.random.default_rng(seed)
    f = io.BytesIO()
    shape = (3, 4) if seed % 2 else (2, 5, 7)
    npz.save_packed(f, lg.pack_rhs(g.integers(-128, 127, shape, dtype=np.int8)))
    return f.getvalue()


def optimizer() -> blockwise.Adam:
    """An optimizer with 8-bit state for one tensor and float32 state for another."""
    return blockwise.Adam([np.zeros(600, np.float32), np.zeros(5, np.float32)], min_8bit_size=100)


def optimizer_file(seed: int) -> bytes:
    """A file as `Optimizer.save` writes it."""
    adam, g = optimizer(), np.random.default_rng(seed)
    adam.step([g.normal(size=600), g.normal(size=5)])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "adam.npz")
        adam.save(path)
        return path.read_bytes()


def load_optimizer(file: Any) -> bytes:
    """State after loading, as bytes; a refusal must leave it as it was."""
    adam = optimizer()
    before = state_bytes(adam)
    try:
        adam.load(file)
    except Exception:
        assert state_bytes(adam) == before, "refused but changed"
        raise
    return state_bytes(adam)


def state_bytes(adam: blockwise.Adam) -> bytes:
    """Everything an optimizer keeps."""
    return b"".join(k.encode() + v.tobytes() for k, v in sorted(adam.state_dict().items()))


def read_bytes(file: Any) -> bytes:
    """All arrays of a file, as bytes."""
    return b"".join(k.encode() + v.tobytes() for k, v in sorted(npz.read(file).items()))


def packed_bytes(file: Any) -> bytes:
    """The matrix of a packed right-hand side."""
    return npz.load_packed(file).to_array().tobytes()


def network_file(seed: int) -> bytes:
    """A file as `nn.save` writes it: convolution, pooling, a residual block and a linear layer."""
    g = np.random.default_rng(seed)
    p, w = QParams(0.05, 3, "uint8"), QParams(0.01, 0, "int8")
    per_channel = QParams(g.uniform(0.01, 0.1, 5), np.zeros(5, int), "int8", axis=-1)
    filters = g.integers(-99, 99, (2, 2, 1, 3), dtype=np.int8)
    branch = [nn.QuantizedConv2d(filters[:1, :1].repeat(3, axis=2), None, p, w, p)]
    layers = [
        nn.QuantizedConv2d(filters, g.integers(-99, 99, 3, dtype=np.int32), p, w, p, activation="relu"),
        nn.QuantizedResidual(branch, p),
        nn.QuantizedMaxPool2d(p, 2),
        nn.QuantizedFlatten(p),
        nn.QuantizedLinear(g.integers(-99, 99, (12, 5), dtype=np.int8), None, p, per_channel, p),
    ]
    f = io.BytesIO()
    nn.save(f, nn.QuantizedSequential(layers[seed % 2 * 3 :]))
    return f.getvalue()


def network_bytes(file: Any) -> bytes:
    """What `nn.save` writes of the network, as bytes."""
    f = io.BytesIO()
    nn.save(f, nn.load(file))
    return read_bytes(io.BytesIO(f.getvalue()))


def used_bytes(file: Any) -> bytes:
    """The matrix of a packed right-hand side as products in chunks and in compiled code see it."""
    w = npz.load_packed(file)
    if w.ndim != 2 or math.prod(w.shape) > 1000:
        return packed_bytes(file)
    one = np.eye(w.shape[0], dtype=w.dtype)
    whole = lg.gemm(one, w)
    if not numba.config.DISABLE_JIT:
        product = compiled.callers(w.dtype.kind, w.dtype.kind, True)[0]
        zeros = np.zeros(1, np.int64), np.zeros(w.shape[1], np.int64)
        assert np.array_equal(product(one, w, *zeros), whole)
    if importlib.util.find_spec("dask"):
        import lowgemm.dask  # noqa: F401

        again = lg.dask.gemm(one, w.to_array()).compute(scheduler="synchronous")
        assert np.array_equal(again, whole)
    return whole.astype(w.dtype).tobytes()


def model_file(seed: int) -> bytes:
    """An ONNX model of one product of depth 3, with its weights."""
    from . import graphs

    s = session.Session(seed)
    op, values, names, more, _ = graphs.product(s, bool(seed % 2))
    while values["b"].shape[0] != 3:
        op, values, names, more, _ = graphs.product(s, bool(seed % 2))
    constants = {k: v for k, v in values.items() if k != "a"}
    model = graphs.graph_of(op, {"a": values["a"]}, constants, names, **more)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, values["a"].shape, strict=True):
        dim.dim_value = size  # said, so that what reads the file can feed it
    return model.SerializeToString()


def model_bytes(file: Any) -> bytes:
    """What the model makes of ones, 3 x 3 of them where it does not say how many."""
    from lowgemm.onnx_run import Model

    try:
        model = Model(file.read())
        shapes = [
            tuple(n if isinstance(n, int) and n < 100 else 3 for n in t.shape or (3, 3)) for t in model.inputs
        ]
        feeds = {t.name: np.ones(shape, t.dtype) for t, shape in zip(model.inputs, shapes, strict=True)}
        return b"".join(np.asarray(y).tobytes() for y in model.run(feeds))
    except (
        TypeError,
        ValueError,
    ) as error:  # both are documented; the message names the model or an operator
        raise ValueError(f"file: {error}") from error


#: Loaders under test: what makes a sound file, and what reads one and gives all of it as bytes.
LOADERS: dict[str, tuple[Callable[[int], bytes], Callable[[Any], bytes]]] = {
    "npz.read": (packed_file, read_bytes),
    "npz.load_packed": (packed_file, packed_bytes),
    "nn.load": (network_file, network_bytes),
    "blockwise.Optimizer.load": (optimizer_file, load_optimizer),
    "npz.load_packed, in compiled code and in chunks": (packed_file, used_bytes),
}
#: Damage to these can be a sound file of something else: they hold no checksum, or take what others do not.
MAY_DIFFER = {"npz.read"}
if importlib.util.find_spec("onnx"):
    LOADERS["onnx_run.Model"] = model_file, model_bytes
    MAY_DIFFER.add("onnx_run.Model")


def npy(header: str, data: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """An ``.npy`` entry with any header."""
    text = header.encode("latin1")
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file."""
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", method) as z:
        for name, content in entries.items():
            z.writestr(name, content)
    return f.getvalue()


def lying(r: random.Random) -> bytes:
    """A sound archive around an array whose header does not tell the truth."""
    descr = r.choice(
        (
            "'|i1'",
            "'|u1'",
            "'<f8'",
            "'|O'",
            "'|V9'",
            "'<U3'",
            "[('x','<i4')]",
            "'<m8[s]'",
            "'>i4'",
            "'zzz'",
            "'<i4",
        )
    )
    shape = r.choice(("(3, 4)", "(10**12,)", "(1000000000000,)", "(-1,)", "(2**70,)", "(4,)*40",
                      "(0, 99999999999999)", "(9999999999, 0, 5)", "3", "[3]",
                      "(None,)", "()", "(1.5,)", "(True,)", "(__import__('os').getpid(),)",
                      "(9223372036854775807, 2)"))  # fmt: skip
    order = r.choice(("False", "True", "3"))
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if r.random() < 0.1:
        header = r.choice(("", "{", "(" * 5000, "{'descr': '|i1'}", "\x00" * 100, header * 100))
    data = r.choice((b"", bytes(12), pickle.dumps(Payload()), bytes(100_000)))
    entry = npy(header + "\n", data, r.choice(((1, 0), (2, 0), (3, 0), (9, 9))))
    marker = npy("{'descr': '<i8', 'fortran_order': False, 'shape': (), }\n", struct.pack("<q", 1))
    return archive(
        {"matrix.npy": entry, "lowgemm_packed_rhs.npy": marker},
        r.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)),
    )


def damaged(r: random.Random, content: bytes) -> bytes:
    """A sound file after an accident."""
    b = bytearray(content)
    kind = r.randrange(7)
    if kind == 0:
        return bytes(b[: r.randrange(len(b))])
    if kind == 1:
        for _ in range(r.choice((1, 1, 3, 20))):
            b[r.randrange(len(b))] = r.randrange(256)
    elif kind == 2:
        at = r.randrange(len(b))
        b[at : at + r.randrange(1, 30)] = b""
    elif kind == 3:
        at = r.randrange(len(b))
        b[at:at] = r.randbytes(r.randrange(1, 30))
    elif kind == 4:  # sizes in the directories
        at = b.find(b"PK\x01\x02") + r.choice((20, 24, 28, 30, 32, 42))
        b[at : at + 4] = struct.pack("<I", r.choice((0, 2**32 - 1, r.randrange(2**32))))
    elif kind == 5:
        b = bytearray(r.randbytes(r.randrange(300)))
    else:
        at = r.randrange(len(b) - 8)
        b[at : at + 8] = struct.pack("<q", r.choice((-1, 2**62, 0)))
    return bytes(b)


def run(files: int, seed: int) -> collections.Counter[str]:
    """Load bad files with every loader; what happened."""
    r = random.Random(seed)
    good = {name: [make(i) for i in range(4)] for name, (make, _) in LOADERS.items()}
    true = {name: [LOADERS[name][1](io.BytesIO(c)) for c in contents] for name, contents in good.items()}
    counts: collections.Counter[str] = collections.Counter()
    for i in range(files):
        lie = r.random() < 0.4
        for name, (_, load) in LOADERS.items():
            content = lying(r) if lie else damaged(r, r.choice(good[name]))
            counts["files"] += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    got = load(io.BytesIO(content))
            except ValueError as error:
                counts["ValueError"] += 1
                if not str(error).startswith(("file: ", "path: ", "state: ")):
                    counts["unnamed"] += 1
            except Exception as error:
                counts[f"undocumented {type(error).__name__} (file {i} of seed {seed}, {name})"] += 1
            else:
                counts["read"] += 1
                if not lie and name not in MAY_DIFFER and got not in true[name]:
                    counts[f"wrong (file {i} of seed {seed}, {name})"] += 1
    counts["code that ran"] = len(RAN)
    return counts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts = run(args.files, args.seed)
    print(dict(counts))
    raise SystemExit(any(counts[k] for k in counts if k not in ("files", "ValueError", "read")))


if __name__ == "__main__":
    main()
