"""A real task in integers: digits of 8 x 8 pixels, an MLP and a convolutional network, trained here in NumPy.

    python examples/digits.py            accuracy: calibrators, bits, scales per channel, equalization ...
    python examples/digits.py --quick    the same with 8 bits alone
    python examples/digits.py --latency  times beside float32 NumPy and onnxruntime
    python examples/digits.py --onnx     predictions beside onnxruntime's

Needs scikit-learn (its digits are in the package); --latency and --onnx need onnx and onnxruntime.
"""

import argparse
import copy
import os
import statistics
import time
from functools import partial

import digits_training
import numpy as np

from lowgemm import nn
from lowgemm import quantization as lq
from lowgemm.nn import float_net as fl
from lowgemm.nn.convert import convert, weight_parameters

OBSERVERS = {
    "min-max": lq.MinMax,
    "moving average": lq.MovingAverage,
    "percentile 99.9": lambda *a, **k: lq.Percentile(*a, percentile=99.9, **k),
    "squared error": lq.MeanSquaredError,
    "entropy, 2048 bins": lambda *a, **k: lq.Entropy(*a, bins=2048, **k),
    "entropy, 32768 bins": lq.Entropy,
}
#: Bits of both, and of weights or activations alone.
BITS, OF_ONE = (8, 6, 4), (6, 4, 3)


def accuracy(logits, y):
    return 100 * float((logits.argmax(1) == y).mean())


def decibels(real, got):
    return 10 * np.log10((real**2).sum() / max(((real - got) ** 2).sum(), 1e-30))


class Task:
    """Trained networks, and batches for calibration and test."""

    def __init__(self, kind, seeds, bits=BITS):
        self.bits = bits
        x, y, self.x, self.y = digits_training.load()
        self.batches = [x[i : i + 50] for i in range(0, 300, 50)]
        self.nets = [digits_training.trained(kind, seed, x, y) for seed in range(seeds)]
        self.real = [fl.run_float(net, self.x) for net in self.nets]

    def score(self, observer="min-max", bits=8, nets=None, weight_bits=None, observe_input=False, **options):
        """Accuracy and decibels of the logits, means over the networks."""
        scores = []
        for net, real in zip(nets or self.nets, self.real, strict=True):
            q = convert(
                net,
                self.batches,
                observer=lambda: OBSERVERS[observer]("uint8", bits=bits),
                input_qparams=None if observe_input else lq.choose_qparams(0, 1, "uint8", bits=bits),
                weight_bits=weight_bits or bits,
                **options,
            )
            got = q.predict(self.x)
            scores.append((accuracy(got, self.y), decibels(real, got)))
        return np.mean(scores, axis=0)

    def row(self, name, **options):
        cells = [self.score(bits=bits, **options) for bits in self.bits]
        print(f"| {name} | " + " | ".join(f"{a:.2f} ({d:.1f})" for a, d in cells) + " |", flush=True)


def stretched(net, seed):
    """The same function, with the channels around depthwise layers multiplied by powers of two from 1/16 to
    16.
    """
    g = np.random.default_rng(seed)
    out = [copy.copy(layer) for layer in net]
    for first, second in ((out[0], out[1]), (out[1], out[2])):
        s = 2.0 ** g.integers(-4, 5, first.weight.shape[3])
        first.weight, first.bias = (first.weight * s).astype(np.float32), (first.bias * s).astype(np.float32)
        across = s if second.groups > 1 else s[:, None]
        second.weight = (second.weight / across).astype(np.float32)
    return out


def weights_only(net, bits, per_channel):
    """The float network with rounded weights."""
    out = [copy.copy(layer) for layer in net]
    for layer in out:
        if isinstance(layer, fl.Residual):
            layer.branch = weights_only(layer.branch, bits, per_channel)
        elif isinstance(layer, (fl.Conv2d, fl.Linear)):
            p = weight_parameters(layer.weight, per_channel, True, bits)
            layer.weight = lq.fake_quantize(layer.weight, p)
    return out


def ratio(weight):
    """Largest range of a channel over the smallest (above zero)."""
    ranges = np.abs(weight).reshape(-1, weight.shape[-1]).max(0)
    return ranges.max() / ranges[ranges > 0].min()


def accuracies(seeds, bits, of_one):
    for kind, title in (("mlp", "MLP 64-128-64-10"), ("conv", "Convolutional network")):
        task = Task(kind, seeds, bits)
        real = np.mean([accuracy(r, task.y) for r in task.real])
        print(f"\n### {title}: float32 {real:.2f} %\n")
        print("| weights and activations | " + " | ".join(f"{b} bits" for b in bits) + " |")
        print("|---|" + "---:|" * len(bits))
        for observer in OBSERVERS:
            for per_channel in (False, True):
                task.row(
                    f"per {'channel' if per_channel else 'tensor'}, {observer}",
                    observer=observer,
                    per_channel=per_channel,
                )
        task.row(
            "per channel, entropy, 2048 bins, input observed too",
            observer="entropy, 2048 bins",
            observe_input=True,
        )
        tricks = {"equalized": {"equalize": True}, "biases corrected": {"correct_biases": True}}
        tricks["both"] = tricks["equalized"] | tricks["biases corrected"]
        for name, trick in tricks.items():
            task.row(f"per tensor, min-max, {name}", per_channel=False, **trick)
        for name, trick in tricks.items():
            task.row(f"per channel, min-max, {name}", **trick)
        task.row("per channel, squared error, both", observer="squared error", **tricks["both"])
        task.row("per tensor, asymmetric weights, min-max", per_channel=False, symmetric_weights=False)
        print("\n| per channel, min-max | " + " | ".join(f"{b} bits" for b in of_one) + " |")
        print("|---|" + "---:|" * len(of_one))
        for name, make in (
            ("only weights", lambda b: {"weight_bits": b}),
            ("only activations", lambda b: {"bits": b, "weight_bits": 8}),
        ):
            cells = [task.score(**make(b)) for b in of_one]
            print(f"| {name} | " + " | ".join(f"{a:.2f} ({d:.1f})" for a, d in cells) + " |", flush=True)
        if kind == "conv":
            nets = [stretched(net, seed) for seed, net in enumerate(task.nets)]
            ratios = [[f"{ratio(n[i].weight):.1f}" for i in (0, 1, 2)] for n in (task.nets[0], nets[0])]
            print(
                f"\nRanges of channels, largest over smallest, layers 1 to 3: {ratios[0]}; stretched "
                f"{ratios[1]}\n"
            )
            print("| channels stretched | " + " | ".join(f"{b} bits" for b in bits) + " |")
            print("|---|" + "---:|" * len(bits))
            for per_channel in (False, True):
                name = "channel" if per_channel else "tensor"
                cells = []
                for b in bits:
                    got = [fl.run_float(weights_only(net, b, per_channel), task.x) for net in nets]
                    both = [
                        (accuracy(a, task.y), decibels(r, a)) for r, a in zip(task.real, got, strict=True)
                    ]
                    cells.append("{:.2f} ({:.1f})".format(*np.mean(both, axis=0)))
                print(
                    f"| per {name}, only weights (float activations) | " + " | ".join(cells) + " |",
                    flush=True,
                )
                task.row(f"per {name}", nets=nets, per_channel=per_channel)
                task.row(f"per {name}, equalized", nets=nets, per_channel=per_channel, equalize=True)
                task.row(
                    f"per {name}, biases corrected", nets=nets, per_channel=per_channel, correct_biases=True
                )


def session(model, shape):
    import onnxruntime

    from lowgemm.nn.onnx_export import to_onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        to_onnx(model, shape).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def compare_with_onnx():
    for kind in ("mlp", "conv"):
        task = Task(kind, 1)
        for rounding in ("onnx", "gemmlowp"):
            model = convert(task.nets[0], task.batches, rounding=rounding)
            theirs = session(model, (None, 8, 8, 1)).run(None, {"x": task.x})[0]
            ours = model.predict(task.x)
            print(
                f"{kind}, rounding {rounding!r}: {int((ours.argmax(1) != theirs.argmax(1)).sum())} of "
                f"{len(ours)} predictions "
                f"differ; logits: {int((ours != theirs).sum())} of {ours.size} differ, by "
                f"{np.abs(ours - theirs).max():.2e} at most, "
                f"{decibels(theirs, ours):.1f} dB"
            )


def interleaved(calls, rounds):
    """Median time of each call in microseconds, taken in turns."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return [1e6 * statistics.median(t) for t in times.values()]


def latency(rounds):
    for kind in ("mlp", "conv"):
        task = Task(kind, 1)
        net = task.nets[0]
        model = convert(net, task.batches, input_qparams=lq.choose_qparams(0, 1, "uint8"), rounding="onnx")
        run = session(model, (None, 8, 8, 1)).run
        print(f"\n{nn.count_maccs(model, (1, 8, 8, 1))}\n")
        names = ("lowgemm int8", "NumPy float32", "onnxruntime int8")
        print(f"| {kind}, batch | " + " | ".join(f"{n}, us" for n in names) + " |\n|---:|---:|---:|---:|")
        for batch in (1, 16, 256):
            x = np.ascontiguousarray(task.x[:batch])
            calls = (partial(model.predict, x), partial(fl.run_float, net, x), partial(run, None, {"x": x}))
            cells = interleaved(dict(zip(names, calls, strict=True)), rounds)
            print(f"| {batch} | " + " | ".join(f"{c:.0f}" for c in cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer bits: one number in each row of the tables"
    )
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--seeds", type=int, default=1, help="networks trained per kind, scores are averaged")
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    if args.latency:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            latency(args.rounds)
    elif args.onnx:
        compare_with_onnx()
    else:
        start = time.perf_counter()
        accuracies(args.seeds, *((8,), (4,)) if args.quick else (BITS, OF_ONE))
        print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
