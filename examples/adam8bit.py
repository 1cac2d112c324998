"""A perceptron on scikit-learn's digits, trained with 32-bit and with 8-bit Adam: accuracy and bytes of
state.

python examples/adam8bit.py            # three seeds, a few seconds
python examples/adam8bit.py --quick    # one seed, 5 epochs
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
from digits_training import load

from lowgemm.blockwise import Adam

SIZES = (64, 256, 256, 10)


def start(seed: int) -> list[np.ndarray]:
    """Weights and biases."""
    g = np.random.default_rng(seed)
    found = []
    for inputs, outputs in itertools.pairwise(SIZES):
        found.append((g.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)).astype(np.float32))
        found.append(np.zeros(outputs, np.float32))
    return found


def forward(params: list[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """Activations of every layer; the last ones are the scores."""
    layers = [x]
    for i in range(0, len(params), 2):
        x = x @ params[i] + params[i + 1]
        layers.append(np.maximum(x, 0) if i + 2 < len(params) else x)
    return layers


def gradients(params: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> tuple[float, list[np.ndarray]]:
    """Mean cross-entropy and its gradient."""
    layers = forward(params, x)
    scores = layers[-1] - layers[-1].max(axis=1, keepdims=True)
    p = np.exp(scores)
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = float(-np.log(p[rows, y] + 1e-12).mean())
    d = p
    d[rows, y] -= 1
    d /= np.float32(len(y))
    found: list[np.ndarray] = []
    for i in range(len(params) - 2, -1, -2):
        found[:0] = [layers[i // 2].T @ d, d.sum(axis=0)]
        d = (d @ params[i].T) * (layers[i // 2] > 0)
    return loss, found


def train(seed: int, bits: int, epochs: int, batch: int = 50) -> tuple[list[np.ndarray], float, Adam]:
    """Trained parameters, the last epoch's mean loss, and the optimizer."""
    x, y, _, _ = load()
    x = x.reshape(len(x), -1)
    params, g = start(seed), np.random.default_rng(seed + 1000)
    # 4096 is the default threshold: biases keep float32 state
    optimizer = Adam(params, lr=1e-3, min_8bit_size=4096 if bits == 8 else 1 << 40)
    loss = 0.0
    for _ in range(epochs):
        order, losses = g.permutation(len(x)), []
        for first in range(0, len(x), batch):
            part = order[first : first + batch]
            one, grads = gradients(params, x[part], y[part])
            optimizer.step(grads)
            losses.append(one)
        loss = float(np.mean(losses))
    return params, loss, optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 5 epochs")
    quick = parser.parse_args().quick
    seeds, epochs = range(1 if quick else 3), 5 if quick else 20
    _, _, x, y = load()
    x = x.reshape(len(x), -1)
    print(f"perceptron {SIZES}, 1200 training and {len(y)} test images, {epochs} epochs, batches of 50")
    print("| seed | state | test accuracy | last loss | bytes of state | s |\n|---|---|---|---|---|---|")
    for seed in seeds:
        for bits in (32, 8):
            began = time.perf_counter()
            params, loss, optimizer = train(seed, bits, epochs=epochs)
            right = int((forward(params, x)[-1].argmax(axis=1) == y).sum())
            print(
                f"| {seed} | {bits}-bit | {right / len(y):.4f} ({right}) | {loss:.5f} | "
                f"{optimizer.state_nbytes:,} "
                f"| {time.perf_counter() - began:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
