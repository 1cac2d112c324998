"""PyTorch's `nn.Linear` in 8-bit integers: one layer by itself, and a network of them.

python examples/from_torch.py

`linear` and `layers_of` are the parts to copy. They take a layer's weights, or the `state_dict` of a network,
as it comes out of torch; a dict of NumPy arrays of the same names will do as well. Without torch the network
is trained in NumPy, and its weights are given torch's names. Needs scikit-learn for the images of digits.
"""

import numpy as np

import lowgemm
from lowgemm.nn.convert import convert
from lowgemm.nn.float_net import Linear, run_float


def array(tensor):
    """A tensor, on any device, as an array; an array as it is."""
    return np.asarray(tensor.detach().cpu() if hasattr(tensor, "detach") else tensor, np.float32)


def linear(weight, bias=None):
    """One `nn.Linear` as a function of float rows. Each row is quantized by itself: nothing has to be
    calibrated.
    """
    # torch keeps weights as (outputs, inputs), lowgemm as (inputs, outputs): one scale per output
    codes, qparams = lowgemm.quantize(array(weight).T, axis=1, symmetric=True)
    packed, offset = lowgemm.pack_rhs(codes), None if bias is None else array(bias)
    return lambda x: lowgemm.nn.dynamic_linear(array(x), packed, qparams.scale, offset)


def layers_of(state, activation="relu"):
    """The float layers of a network of `nn.Linear`, with an activation after each but the last one.

    A `state_dict` has the weights in order, under names such as "0.weight", "0.bias", "2.weight". It does not
    say what stands between them.
    """
    names = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    layers = []
    for name in names:
        weight, bias = array(state[f"{name}.weight"]), state.get(f"{name}.bias")
        if weight.ndim != 2:
            raise ValueError(f"{name}: expected a linear layer, got weights of shape {weight.shape}")
        after = activation if name != names[-1] else "none"
        layers.append(Linear(weight.T, None if bias is None else array(bias), after))
    return layers


def trained(x, y):
    """The `state_dict` of a small network, and what made it."""
    try:
        import torch
    except ImportError:
        import digits_training

        layers = [layer for layer in digits_training.trained("mlp", 0, x, y) if isinstance(layer, Linear)]
        state = {}
        for number, layer in enumerate(layers):
            state[f"{2 * number}.weight"], state[f"{2 * number}.bias"] = layer.weight.T, layer.bias
        return state, "NumPy (torch is not installed)"
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 10))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    rows, labels = torch.tensor(x.reshape(len(x), 64)), torch.tensor(y)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(rows), labels).backward()
        optimizer.step()
    return net.state_dict(), f"torch {torch.__version__}"


def main():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    state, maker = trained(images[:1200].reshape(-1, 8, 8, 1), labels[:1200])
    test, right = images[1200:], labels[1200:]
    print(f"trained by {maker}: " + ", ".join(f"{name} {tuple(w.shape)}" for name, w in state.items()))

    layers = layers_of(state)
    real = run_float(layers, test)
    first = next(iter(state)).removesuffix(".weight")
    y = linear(state[f"{first}.weight"], state[f"{first}.bias"])(test)
    exact = layers[0].linear(test)
    print(
        "first layer alone, rows quantized one by one: off by "
        f"{np.abs(y - exact).max() / np.abs(exact).max():.4f} of the largest"
    )

    network = convert(layers, [images[:300]])
    got = network.predict(test)
    print(network)
    print(
        f"right in float32: {(real.argmax(1) == right).mean():.4f}, in 8 bits: "
        f"{(got.argmax(1) == right).mean():.4f}"
    )
    print(f"the same answer: {(real.argmax(1) == got.argmax(1)).sum()} of {len(test)}")
    lowgemm.nn.save("from_torch.npz", network)
    assert (lowgemm.nn.load("from_torch.npz").predict(test) == got).all()
    print("from_torch.npz holds the network: lowgemm.nn.load reads it, without torch")


if __name__ == "__main__":
    main()
