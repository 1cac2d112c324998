"""A tour of `lowgemm.quantization`, in the order of `docs/quantization.md`.

Run it whole (``python examples/quantization_tour.py``, a few seconds), or cell by cell in an editor that
knows ``# %%``. With a file name as argument it also draws the picture of the page; that needs matplotlib. All
data are made up, with fixed seeds.
"""

# %% One tensor: scale, zero point, and back
import sys

import numpy as np

import lowgemm
from lowgemm import quantization as lq

rng = np.random.default_rng(7)
x = np.maximum(rng.standard_normal((4096, 64)) + 0.3, 0).astype(np.float32)  # as after a ReLU
px = lq.choose_qparams(x.min(), x.max(), "uint8")
qx = lq.quantize(x, px)
error = np.abs(lq.dequantize(qx, px) - x).max()
print(
    f"1. scale {float(px.scale):.5f}, zero point {int(px.zero_point)}; largest error {error / px.scale:.3f} "
    "steps"
)

# %% A scale per channel: weights whose columns differ
w = (rng.standard_normal((64, 32)) * 10.0 ** rng.uniform(-2, 0, 32)).astype(np.float32)
bound = np.abs(w).max(axis=0)
signed = {"symmetric": True, "narrow_range": True}
per_tensor = lq.choose_qparams(-bound.max(), bound.max(), **signed)
pw = lq.choose_qparams(-bound, bound, axis=1, **signed)
worst = [lq.sqnr(w, p, axis=1).min() for p in (per_tensor, pw)]
print(
    f"2. worst column of the weights: {worst[0]:.1f} dB with one scale, {worst[1]:.1f} dB with one per column"
)

# %% A layer in integers: quantize both sides, multiply, requantize
y = x @ w
py = lq.choose_qparams(y.min(), y.max())
packed = lowgemm.pack_rhs(lq.quantize(w, pw))
to_int8 = lowgemm.Requantize(px.scale * pw.scale / py.scale, int(py.zero_point), np.int8)
qy = lowgemm.gemm(qx, packed, lhs_zero_point=int(px.zero_point), output=to_int8)
layer_error = lq.dequantize(qy, py) - y
ratio = 10 * np.log10((y**2).sum() / (layer_error**2).sum())
print(
    f"3. integer layer against float: {ratio:.1f} dB; its own rounding to int8 alone: {lq.sqnr(y, py):.1f} dB"
)

# %% Calibration: the range from batches, with an outlier in one of them
batches = [np.maximum(rng.standard_normal((256, 64)), 0) for _ in range(20)]
batches[11][3, 5] = 30.0
everything = np.concatenate(batches)
observers = {
    "MinMax": lq.MinMax("uint8"),
    "MovingAverage": lq.MovingAverage("uint8"),
    "Percentile": lq.Percentile("uint8", percentile=99.99),
    "MeanSquaredError": lq.MeanSquaredError("uint8"),
    "Entropy": lq.Entropy("uint8"),
}
print("4. calibrator          high   dB at 8 bits, of all but the outlier")
common = everything[everything < 29]
for name, observer in observers.items():
    p = lq.calibrate(observer, batches)
    print(f"   {name:18} {float(p.high):7.3f} {lq.sqnr(common, p):7.1f}")
halves = [lq.Entropy("uint8"), lq.Entropy("uint8")]
for half, some in zip(halves, (batches[:7], batches[7:]), strict=True):
    lq.calibrate(half, some)
merged = halves[0].merge(halves[1]).qparams()
print(f"   two observers merged give what one gave: {merged == observers['Entropy'].qparams()}")

# %% Batch normalisation folded into the layer before it
gamma, beta, mean, variance = rng.uniform(0.5, 2, (4, 32))
folded, bias = lq.fold_batch_norm(w, None, gamma, beta, mean, variance)
normalised = (x @ w - mean) / np.sqrt(variance + 1e-5) * gamma + beta
print(
    "5. folded layer differs from layer and normalisation by "
    f"{np.abs(x @ folded + bias - normalised).max():.1e}"
)

# %% Equalization and bias correction: one scale per tensor after all
second = (rng.standard_normal((32, 16)) / np.abs(folded).max(axis=0)[:, None]).astype(np.float32)
target = np.maximum(x @ folded + bias, 0) @ second


def rounded(a, bits):
    """One scale for the whole tensor."""
    top = np.abs(a).max()
    return lq.fake_quantize(a, lq.choose_qparams(-top, top, bits=bits, **signed))


def two_layers(ws, b0, b1):
    """Output of the two layers with rounded weights, and how close it is to the target."""
    got = np.maximum(x @ rounded(ws[0], 6) + b0, 0) @ rounded(ws[1], 6) + b1
    return got, 10 * np.log10((target**2).sum() / ((got - target) ** 2).sum())


equal = lq.equalize_ranges([folded, second], [bias, None])
_, plain = two_layers([folded, second], bias, 0)
got, better = two_layers(equal.weights, equal.biases[0], 0)
first_bias = lq.correct_bias(equal.biases[0], equal.weights[0], rounded(equal.weights[0], 6), x.mean(axis=0))
got, _ = two_layers(equal.weights, first_bias, 0)
last_bias = lq.correct_bias_from_outputs(None, target, got)
corrected, best = two_layers(equal.weights, first_bias, last_bias)
print(
    f"6. two layers, 6-bit weights, one scale each: {plain:.1f} dB; equalized {better:.1f} dB; bias "
    f"corrected {best:.1f} dB"
)

# %% Sigmoid and tanh: integers where the output moves
before = rng.standard_normal(20_000) * 5
gains = {kind: lq.s_shaped_gain(kind, before) for kind in ("sigmoid", "tanh")}
for gain in gains.values():
    print(f"7. {gain}")

# %% The range report: what would lose precision, and why
boxes, scores = rng.standard_normal((500, 4)) * 150, rng.uniform(0, 1, (500, 12))
report = lq.range_report(
    {
        "input": rng.standard_normal((500, 3)) + 100,
        "depthwise.weight": rng.standard_normal((9, 16)) * 10.0 ** rng.uniform(-2.5, 0, 16),
        "hidden": np.concatenate(batches[10:13]),
        "relu6": np.clip(rng.standard_normal((500, 8)) * [1, 1, 1, 0, 1, 1, 1, 9], 0, 6),
        "output": np.concatenate([boxes, scores], axis=1),
    }
)
print("8. the range report\n")
print(report)


# %% The picture
def draw(path):
    """Four panels: calibrated ranges, weights per column, the sigmoid's error, the report's ratios."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    ((a, b), (c, d)) = figure.subplots(2, 2)
    styles = dict(zip(observers, [":", "-", "--", "-.", (0, (1, 3))], strict=True))
    a.hist(everything[everything > 0], bins=np.linspace(0, 31, 156), color="0.75")
    for k, (name, observer) in enumerate(observers.items()):
        a.axvline(
            float(observer.qparams().high), color=f"C{k}", linestyle=styles[name], linewidth=2, label=name
        )
    a.set(yscale="log", xlabel="activation", ylabel="values", title="Upper end that each calibrator chose")
    a.legend(fontsize=8)

    order = np.argsort(bound)
    for p, label in ((per_tensor, "one scale"), (pw, "a scale per column")):
        b.plot(bound[order], lq.sqnr(w, p, axis=1)[order], "o-", markersize=4, label=label)
    b.set(xscale="log", xlabel="largest magnitude in the column", ylabel="SQNR of the column, dB")
    b.set_title("Weights whose columns differ")
    b.legend(fontsize=8)

    t = np.linspace(-9, 9, 4001)
    real = 1 / (1 + np.exp(-t))
    for clip, label in ((np.inf, f"whole range, ±{np.abs(before).max():.0f}"), (6.0, "clipped at ±6")):
        p = lq.s_shaped_input("sigmoid", before.min(), before.max(), clip=clip)
        table = lq.s_shaped_table("sigmoid", p)
        result = lq.dequantize(table[lq.quantize(t, p).astype(int) + 128], lq.s_shaped_output("sigmoid"))
        c.plot(t, (result - real) * 256, linewidth=0.8, label=label)
    c.set(xlabel="x", ylabel="error, steps of the output (1/256)", title="8-bit sigmoid: integer minus real")
    c.legend(fontsize=8, loc="upper left")

    names = [tensor.name for tensor in report.tensors]
    at = np.arange(len(names))
    d.bar(at - 0.27, [t.sqnr for t in report.tensors], 0.26, label="one scale")
    d.bar(at, [t.sqnr_per_channel for t in report.tensors], 0.26, label="a scale per channel")
    d.bar(at + 0.27, [t.channel_sqnr.min() for t in report.tensors], 0.26, label="worst channel, one scale")
    d.set_xticks(at, names, rotation=15)
    d.set(ylabel="SQNR, dB", ylim=(0, 75), title="The tensors of the range report")
    d.legend(fontsize=8)
    figure.savefig(path, dpi=100)


if len(sys.argv) > 1:
    draw(sys.argv[1])
