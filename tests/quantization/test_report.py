"""Each case of the range report is found where it is made, and nowhere else; figures are those of the
data.
"""

import builtins

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowgemm.quantization import choose_qparams, fake_quantize, range_report, sqnr
from lowgemm.quantization.advice import listed


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def cases(**tensors):
    return [(f.tensor, f.case) for f in range_report(tensors).findings]


def test_good_tensors_raise_nothing():
    relu = np.maximum(normal((500, 8)), 0)
    report = range_report(
        {"weight": normal((64, 8)), "input": normal((500, 3)), "hidden": relu, "bias": normal(8)}
    )
    assert report.findings == []
    assert str(report).endswith("Nothing to complain about.")


def test_input_not_normalised():
    far = normal((400, 3)) + 100
    report = range_report({"input": far})
    assert [f.case for f in report.findings] == ["not normalised"]
    unused = 1 - (far.max() - far.min()) / far.max()
    assert f"{unused:.0%} of the integers are never used" in report.findings[0].text
    assert "Subtract the mean" in report.findings[0].text
    units = normal((400, 3)) * [1, 100, 1]
    report = range_report({"x": units}, roles={"x": "input"})
    assert [f.case for f in report.findings] == ["not normalised"]
    assert "Standardise" in report.findings[0].text
    positive = np.abs(normal((400, 3)))
    assert cases(x=positive) == []
    symmetric = range_report({"x": positive}, symmetric=True)
    assert [f.case for f in symmetric.findings] == ["not normalised"]
    assert "one sign" in symmetric.findings[0].text


def test_units_alone_cost_nothing():
    x = normal((400, 3)).astype(np.float32)
    a, b = (range_report({"input": x * k}).tensors[0] for k in (1, 256))
    assert a.sqnr == b.sqnr and not a.findings and not b.findings


def test_weights_whose_channels_differ():
    w = normal((9, 6)) * [1, 1, 1e-2, 1, 1e-4, 1]
    report = range_report({"depthwise.weight": w})
    (finding,) = report.findings
    assert finding.case == "channel ranges differ" and finding.channels == (2, 4)
    assert "scale per channel" in finding.text and "In 1 of them every value becomes 0" in finding.text
    t = report.tensors[0]
    assert t.channel_sqnr[4] == 0.0 and t.channel_sqnr_own[4] > 35
    turned = range_report({"depthwise.weight": w.T}, axis={"depthwise.weight": 0})
    assert turned.findings == report.findings


def test_activations_whose_channels_differ_and_mixed_outputs():
    wide = normal((500, 10)) * 2.0 ** np.arange(10)
    (finding,) = range_report({"hidden": wide}).findings
    assert finding.case == "channel ranges differ" and "equalize_ranges" in finding.text
    boxes, scores = normal((500, 4)) * 150, 1 / (1 + np.exp(-normal((500, 20), 1)))
    (finding,) = range_report({"output": np.concatenate([boxes, scores], axis=1)}).findings
    assert finding.case == "mixed ranges" and finding.channels == tuple(range(4, 24))
    assert "channels 0-3 reach" in finding.text and "separate outputs" in finding.text


def test_outliers():
    x = normal((1000, 4))
    x[17, 2] = 60
    (finding,) = range_report({"hidden": x}).findings
    assert finding.case == "outliers" and "4 of 4000 values" in finding.text and "reach 60" in finding.text
    assert "MeanSquaredError keeps them" in finding.text
    x[17, 2], x[18] = 20, normal(4)
    (finding,) = range_report({"hidden": x}, bits=4).findings
    assert finding.case == "outliers" and "MeanSquaredError (it chose" in finding.text
    assert cases(hidden=normal((1000, 4))) == []
    x[17, 2], x[:, 1] = 60, x[:, 1] * 0.01
    assert cases(hidden=x) == [("hidden", "channel ranges differ"), ("hidden", "outliers")]


def test_dead_and_constant_channels():
    x = normal((300, 6))
    x[:, [1, 2]] = 0
    x[:, 5] = 0.5
    dead, constant = range_report({"hidden": x}).findings
    assert dead.case == constant.case == "dead channels"
    assert dead.channels == (1, 2) and "(1-2) are always 0" in dead.text
    assert constant.channels == (5,) and "bias" in constant.text
    assert cases(weight=np.where(np.arange(6) == 3, 0, normal((40, 6)))) == [("weight", "dead channels")]


def test_clipped_channels():
    x = np.clip(normal((1000, 4)) * [1, 1, 1, 8], 0, 6)
    (finding,) = range_report({"relu6": x}).findings
    assert finding.case == "clipped channels" and finding.channels == (3,)
    assert f"{(x[:, 3] == 6).mean():.0%} of the values" in finding.text
    assert cases(relu=np.maximum(normal((1000, 4)), 0)) == []
    whole = range_report({"relu6": np.clip(normal(1000) * 8, 0, 6)}).findings
    assert [f.case for f in whole] == ["clipped channels"]


def test_too_few_bits():
    report = range_report({"hidden": normal((300, 4))}, bits=3)
    assert [f.case for f in report.findings] == ["low precision"] and report.bits == 3


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 0, 1, -1]), st.sampled_from([4, 8]))
def test_figures_are_those_of_the_data(seed, axis, bits):
    x = normal((30, 5), seed) * np.random.default_rng(seed).uniform(0.1, 3, 5)
    t = range_report({"hidden": x}, axis=axis, bits=bits).tensors[0]

    def ratio(a, p):
        error = a - fake_quantize(a, p).astype(np.float64)
        return 10 * np.log10((a**2).sum() / (error**2).sum())

    whole = choose_qparams(x.min(), x.max(), bits=bits)
    assert np.isclose(t.sqnr, ratio(x, whole)) and np.isclose(t.sqnr, sqnr(x, whole))
    assert t.sqnr_clipped >= t.sqnr
    if axis is None:
        assert t.sqnr_per_channel == t.sqnr
        return
    for c in range(x.shape[axis]):
        one = x.take(c, axis)
        assert (t.channel_low[c], t.channel_high[c]) == (one.min(), one.max())
        assert np.isclose(t.channel_sqnr[c], ratio(one, whole))
        assert np.isclose(t.channel_sqnr_own[c], ratio(one, choose_qparams(one.min(), one.max(), bits=bits)))
        assert np.isclose(sqnr(x, whole, axis=axis)[c], t.channel_sqnr[c])


def test_ratio_of_nothing_lost():
    assert sqnr(np.arange(5), choose_qparams(0, 255, "uint8")) == np.inf
    report = range_report({"zeros": np.zeros((4, 3)), "one": 1.0})
    assert report.tensors[0].sqnr == np.inf and "inf" in report.text()
    assert [f.case for f in report.findings] == ["dead channels"]


def test_lists_of_channels():
    assert listed(np.array([0, 1, 2, 5, 7, 8])) == "0-2, 5, 7-8"
    assert listed(np.arange(0, 40, 2), limit=2) == "0, 2, ..."


def test_plot(tmp_path):
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    path = tmp_path / "report.png"
    w = normal((9, 6)) * 10.0 ** np.arange(-3, 3)
    w[:, 1] = 0
    figure = range_report({"weight": w, "bias": normal(6), "zeros": np.zeros(4)}).plot(path)
    assert path.stat().st_size > 5000 and len(figure.axes) == 2


def test_plot_without_matplotlib_says_so(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    report = range_report({"weight": normal((4, 4))})
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="needs matplotlib"):
        report.plot()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: range_report([1.0]), TypeError, "tensors: expected a mapping"),
        (lambda: range_report({"a": [np.nan]}), ValueError, r"tensors\['a'\]: expected finite"),
        (lambda: range_report({"a": []}), ValueError, r"tensors\['a'\]: expected at least one"),
        (lambda: range_report({"a": ["x"]}), TypeError, r"tensors\['a'\]: expected real"),
        (lambda: range_report({"a": [1.0]}, roles={"b": "weight"}), ValueError, "roles: expected names"),
        (lambda: range_report({"a": [1.0]}, roles={"a": "gradient"}), ValueError, "roles: expected 'input'"),
        (lambda: range_report({"a": np.ones((2, 2))}, axis=2), ValueError, "axis: expected -2 to 1"),
        (lambda: range_report({"a": [1.0]}, bits=1), ValueError, "bits: expected 2 to 8"),
        (lambda: sqnr([], choose_qparams(0, 1)), ValueError, "x: expected at least one"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()
