"""Networks on disk: the same bits come back, and bad files raise ValueError."""

import io
import zipfile

import numpy as np
import pytest
from test_layers import integers, small_net

from lowgemm import nn, npz
from lowgemm.quantization import QParams


def saved(model):
    f = io.BytesIO()
    nn.save(f, model)
    f.seek(0)
    return f


def test_round_trip(tmp_path):
    net = small_net(np.random.default_rng(3))
    nn.save(tmp_path / "net.npz", net)
    back = nn.load(tmp_path / "net.npz")
    x = integers(np.random.default_rng(4), (2, 4, 4, 2), "uint8")
    np.testing.assert_array_equal(back(x), net(x))
    assert [layer.kind for layer in back] == [layer.kind for layer in net]
    assert saved(back).getvalue()[:4] == b"PK\x03\x04"
    assert {k: v.tolist() for k, v in npz.read(saved(back)).items()} == {
        k: v.tolist() for k, v in npz.read(saved(net)).items()
    }
    with pytest.raises(TypeError, match=r"^model:"):
        nn.save(io.BytesIO(), [])


def test_each_array_missing_or_wrong_is_a_value_error():
    arrays = npz.read(saved(small_net(np.random.default_rng(5))))
    optional = ("bias", "activation", "rounding", "stride", "padding", "dilation", "groups", ".scale")
    for name, value in arrays.items():
        others = {k: v for k, v in arrays.items() if k != name}
        wrong = [np.zeros((2, 0, 3)), np.array("nonsense"), np.full(value.shape, -7), np.full(3, 2**62)]
        for replacement in ([] if name.endswith(optional) else [None]) + wrong:
            f = io.BytesIO()
            npz.write(f, **others, **({} if replacement is None else {name: replacement}))
            f.seek(0)
            try:
                nn.load(f)
            except ValueError as error:
                assert str(error).startswith("file:")
            else:  # a zero point of -7 is sound, and so is a scale of 2**62
                assert name.endswith(("zero_point", "bias", "scale")) or replacement is None, (
                    name,
                    replacement,
                )


def test_cut_and_flipped_files():
    data = saved(small_net(np.random.default_rng(6))).getvalue()
    g = np.random.default_rng(7)
    for i in range(150):
        bad = bytearray(data)
        if i % 3 == 0:
            del bad[int(g.integers(len(bad))) :]
        else:
            bad[int(g.integers(len(bad)))] ^= 1 << int(g.integers(8))
        try:
            nn.load(io.BytesIO(bytes(bad)))
        except ValueError as error:
            assert str(error).startswith("file:")


def test_hostile_files():
    deep = {"lowgemm_nn": np.int64(1)}
    prefix = ""
    for _ in range(3000):
        deep |= {f"{prefix}layers": np.int64(1), f"{prefix}0.kind": np.array("residual")}
        prefix = f"{prefix}0.branch."
        if len(prefix) > 900:
            break
    f = io.BytesIO()
    npz.write(f, **deep)
    with pytest.raises(ValueError, match="branches"):
        nn.load(f)
    f = io.BytesIO()
    npz.write(f, lowgemm_nn=np.int64(1), layers=np.int64(2**60))
    with pytest.raises(ValueError, match="number of layers"):
        nn.load(f)
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w") as z:
        z.writestr("x.txt", b"text")
    with pytest.raises(ValueError, match="file"):
        nn.load(f)
    extra = npz.read(saved(nn.QuantizedSequential([nn.QuantizedFlatten(QParams(1.0))]))) | {
        "more": np.zeros(1)
    }
    f = io.BytesIO()
    npz.write(f, **extra)
    with pytest.raises(ValueError, match="no other arrays"):
        nn.load(f)
