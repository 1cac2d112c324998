"""What block-wise coding loses: dynamic against linear codes, blocks against whole tensors, on three kinds of
data.

    python examples/blockwise_errors.py

Normal data, heavy-tailed data (Student's t with 2 degrees of freedom), and gradients of the perceptron of
adam8bit.py in its third epoch. Absolute error: mean of |x - y| over the mean of |x|. Relative error: mean of
|x - y| / |x| where x is not 0; a code that turns small values into 0 loses 100 % of each.

A second table is about LLM.int8(): the error of ``x @ w`` that the codes of x make, of whose rows the scales
leave out their outlier elements or all their elements in outlier columns. Mean absolute error over the mean
absolute value.
"""

from __future__ import annotations

import numpy as np
from adam8bit import gradients, train
from digits_training import load

from lowgemm.blockwise import (
    MixedWeight,
    dequantize_blockwise,
    mixed_linear,
    quantize_blockwise,
    quantize_vectorwise,
)


def data() -> dict[str, np.ndarray]:
    """A million values of each distribution, and the gradients."""
    g = np.random.default_rng(0)
    params, _, _ = train(0, 32, epochs=3)
    x, y, _, _ = load()
    _, grads = gradients(params, x[:50].reshape(50, -1), y[:50])
    return {
        "normal": g.standard_normal(1 << 20).astype(np.float32),
        "heavy-tailed": g.standard_t(2, 1 << 20).astype(np.float32),
        "gradients": np.concatenate([a.ravel() for a in grads]),
    }


def errors(x: np.ndarray, code: str, blocksize: int) -> tuple[float, float]:
    """Mean absolute error over mean absolute value, and mean relative error, both in percent."""
    y = dequantize_blockwise(quantize_blockwise(x, code, blocksize=blocksize))
    wrong, size = np.abs(x.astype(np.float64) - y), np.abs(x.astype(np.float64))
    some = size > 0
    return 100 * wrong.mean() / size.mean(), 100 * (wrong[some] / size[some]).mean()


def activations() -> dict[str, np.ndarray]:
    """256 rows of 512 columns, normal but for what the name says."""
    found = {}
    for name, columns, change in (
        ("1 column times 60", 1, lambda x: x * 60),
        ("6 columns times 20", 6, lambda x: x * 20),
        ("6 columns times 5", 6, lambda x: x * 5),
        ("6 columns times 2.5", 6, lambda x: x * 2.5),
        ("6 columns plus 8", 6, lambda x: x + 8),
    ):
        g = np.random.default_rng(1)
        x = g.standard_normal((256, 512))
        chosen = g.choice(512, columns, replace=False)
        x[:, chosen] = change(x[:, chosen])
        found[name] = x.astype(np.float32)
    for freedom in (5, 3):
        g = np.random.default_rng(freedom)
        found[f"all heavy-tailed (t, {freedom})"] = g.standard_t(freedom, (256, 512)).astype(np.float32)
    return found


def mixed_error(x: np.ndarray, scale_without: str) -> float:
    """Error of a mixed product that the codes of x make, in percent."""
    w = MixedWeight(np.random.default_rng(0).standard_normal((512, 64)))
    exact = x.astype(np.float64) @ (w.codes() * (w.scales / 127.0))
    return 100 * np.abs(mixed_linear(x, w, scale_without=scale_without) - exact).mean() / np.abs(exact).mean()


def main() -> None:
    print("| data | code | block | absolute error, % | relative error, % |\n|---|---|---|---|---|")
    for name, x in data().items():
        for code, sizes in (
            ("dynamic", (64, 256, 4096, x.size)), ("linear", (64, 256, 4096, x.size)), ("fp8_e4m3", (256,)),
            ("nf4", (64, x.size)), ("fp4", (64,)), ("int4", (64,)),
        ):  # fmt: skip
            for size in sizes:
                absolute, relative = errors(x, code, size)
                block = "whole" if size == x.size else str(size)
                print(f"| {name} | {code} | {block} | {absolute:.3f} | {relative:.2f} |")
    print("\n| x | outlier columns | scale without elements, % | without columns, % |\n|---|---|---|---|")
    for name, x in activations().items():
        count = quantize_vectorwise(x, threshold=6)[2].size
        both = [mixed_error(x, without) for without in ("elements", "columns")]
        print(f"| {name} | {count} | {both[0]:.3f} | {both[1]:.3f} |")


if __name__ == "__main__":
    main()
