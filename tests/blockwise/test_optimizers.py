"""Optimizers against the golden steps, and against the NumPy rules bit for bit."""

from __future__ import annotations

import io

import blockdata
import numba
import numpy as np
import pytest
from optimizers import public_optimizers

from lowgemm import blockwise
from lowgemm.blockwise import job as jobs
from lowgemm.blockwise import reference
from lowgemm.blockwise.optimizers import LARS, SGD, Adam, AdEMAMix, Lion, RMSprop

#: Every optimizer that is public.
CLASSES = public_optimizers()
#: Set when all tests run with NUMBA_DISABLE_JIT=1.
NO_JIT = numba.config.DISABLE_JIT
CASES = blockdata.manifest()["optim8"]["cases"]


def make(cls, params, **options):
    """An optimizer with a learning rate, which some have no default for."""
    return cls(params, **{"lr": 0.01, **options})


@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_golden_steps(case):
    z, name = blockdata.arrays("optim8"), case["name"]
    cls = getattr(blockwise, case["class"].removesuffix("8bit"))
    p0 = z["p0"]
    p = p0.copy()
    optimizer = cls(p, **case["hyper"], blocksize=case["blocksize"], min_8bit_size=0)
    parts = [("s1", "am1"), ("s2", "am2")] if f"{name}_s2" in z else [("s1", "am1")]
    for t in range(case["steps"]):
        optimizer.step(z[case["grads"]][t])
        state = optimizer._states[0]
        codes = np.concatenate([np.atleast_2d(z[f"{name}_{c}"][t]) for c, _ in parts])
        scales = np.concatenate([np.atleast_2d(z[f"{name}_{a}"][t]) for _, a in parts])
        different = np.stack(state.values) != codes
        assert different.mean() <= 0.001
        assert (np.abs(np.stack(state.values).astype(int) - codes) <= 1).all()
        # an all-zero tail has 1e-38 there
        np.testing.assert_allclose(np.stack(state.scales), scales, rtol=2e-7, atol=1e-38)
        expected = z[f"{name}_p"][t]
        bound = 4e-6 * np.maximum(np.abs(expected), np.abs(expected - p0))
        assert (np.abs(p - expected) <= bound)[~different.any(axis=0)].all()
        if different.any():  # go on from the golden state, so that one neighbouring code does not add up
            p[...] = expected
            for k in range(len(codes)):
                state.values[k][...], state.scales[k][...] = codes[k], scales[k]


@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_32_bit_state(case):
    """With float32 state the result is the library's 32-bit optimizer's, where that has the same formula."""
    z, name = blockdata.arrays("optim8"), case["name"]
    if name in ("lamb", "lars"):
        pytest.skip("the library's 32-bit LAMB and LARS have a trust ratio, ours follow its 8-bit ones")
    cls = getattr(blockwise, case["class"].removesuffix("8bit"))
    p = z["p0"].copy()
    optimizer = cls(p, **case["hyper"], min_8bit_size=p.size + 1)
    assert optimizer.state_nbytes == 4 * p.size * len(optimizer.state_books)
    for g in z[case["grads"]]:
        optimizer.step(g)
    moved = np.abs(z[f"{name}_p32_last"] - z["p0"])
    np.testing.assert_array_less(
        np.abs(p - z[f"{name}_p32_last"]), 1e-5 * np.maximum(np.abs(p), moved) + 1e-7
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_threads_and_no_jit_give_the_same(cls, monkeypatch):
    monkeypatch.setattr(jobs, "ELEMENTS_PER_THREAD", 1)
    monkeypatch.setattr(jobs, "ELEMENTS_PER_TASK", 256)
    rng = np.random.default_rng(0)
    start, grads = (
        rng.standard_normal(3000).astype(np.float32),
        rng.standard_normal((3, 3000)).astype(np.float32),
    )
    results = []
    for threads, plain in ((1, 0), (2, 0), (1, 1)):
        p = start.copy()
        optimizer = make(cls, p, weight_decay=0.01, blocksize=100, min_8bit_size=0, num_threads=threads)
        with monkeypatch.context() as m:
            m.setattr(numba.config, "DISABLE_JIT", plain or NO_JIT)
            for g in grads:
                optimizer.step(g)
        results.append((p, optimizer.state_dict()))
    for p, state in results[1:]:
        np.testing.assert_array_equal(p, results[0][0])
        for key, a in state.items():
            np.testing.assert_array_equal(a, results[0][1][key])


def test_shapes_strides_and_dtypes():
    """Any view is changed in place; what lies between its elements is not."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal((40, 60)).astype(np.float32)
    plain = base[::2, ::-3].copy()
    view, g = base[::2, ::-3], rng.standard_normal((20, 20))
    before = base.copy()
    first, second = Adam(view, min_8bit_size=0), Adam(plain, min_8bit_size=0)
    first.step([g])
    second.step(np.asfortranarray(g.astype(np.float32)))
    np.testing.assert_array_equal(view, plain)
    base[::2, ::-3] = before[::2, ::-3]
    np.testing.assert_array_equal(base, before)

    half = rng.standard_normal(500).astype(np.float16)
    single = half.astype(np.float32)
    Adam(half, lr=0.1).step(half)
    Adam(single, lr=0.1).step(single)
    np.testing.assert_array_equal(half, single.astype(np.float16))


def test_small_and_missing_tensors():
    p = [
        np.ones(4095, np.float32),
        np.ones(4096, np.float32),
        np.ones((0, 3), np.float32),
        np.ones((), np.float32),
    ]
    optimizer = Adam(p, lr=0.5)
    assert optimizer.state_nbytes == 8 * 4095 + 2 * (4096 + 4 * 16) + 8
    optimizer.step([None, p[1].copy(), p[2], np.array(2.0)])
    assert (p[0] == 1).all() and (p[1] == 0.5).all() and p[3] == 0.5
    assert repr(optimizer) == "Adam(4 tensors, 1 with 8-bit state, lr=0.5)"
    np.testing.assert_allclose(optimizer.state_of(1)["m"], 0.1, rtol=1e-6)
    assert (optimizer.state_of(0)["m"] == 0).all()


def test_gradient_may_be_the_parameter():
    p = np.linspace(-1, 1, 5000, dtype=np.float32)
    q = p.copy()
    RMSprop(p).step(p)
    RMSprop(q).step(q.copy())
    np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e18, -3e30, 1e300])
def test_bad_gradient_changes_nothing(bad):
    p = [np.ones(300, np.float32), np.ones(5000, np.float32)]
    optimizer = Adam(p)
    optimizer.step([np.ones(300), np.ones(5000)])
    before, state = [a.copy() for a in p], optimizer.state_dict()
    g = np.ones(5000)
    g[4321] = bad
    with pytest.raises(ValueError, match=r"^grads\[1\]: expected"):
        optimizer.step([np.ones(300), g])
    for a, b in zip(p, before, strict=True):
        np.testing.assert_array_equal(a, b)
    for key, a in optimizer.state_dict().items():
        np.testing.assert_array_equal(a, state[key])


@pytest.mark.parametrize("cls", CLASSES)
def test_save_and_load(cls, tmp_path):
    rng = np.random.default_rng(2)
    start = [rng.standard_normal((50, 100)).astype(np.float32), rng.standard_normal(70).astype(np.float32)]
    grads = [[rng.standard_normal(a.shape) for a in start] for _ in range(4)]
    first, second = [a.copy() for a in start], None
    optimizer = make(cls, first)
    for g in grads[:2]:
        optimizer.step(g)
    optimizer.save(tmp_path / "state.npz")
    second = [a.copy() for a in first]
    other = make(cls, second)
    other.load(tmp_path / "state.npz")
    assert other.steps_done == 2
    for g in grads[2:]:
        optimizer.step(g)
        other.step(g)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("wide", [False, True])
def test_every_state_is_checked_when_loaded(cls, wide):
    """Whatever a step cannot leave behind is refused, in every state of every optimizer; a step would spread
    it.
    """
    p = np.ones(600, np.float32)
    optimizer = make(cls, p, min_8bit_size=9999 if wide else 0)
    optimizer.step(np.linspace(-1, 1, 600, dtype=np.float32))
    good, before = optimizer.state_dict(), p.copy()
    tried = 0
    for kind in optimizer.state_books:
        key = f"0/{kind.name}" + ("" if wide else "/scales")
        bad = [(key, v) for v in (np.nan, np.inf, -np.inf)]
        if kind.squares and wide:
            bad.append((key, np.float32(-1e-30)))
        if not wide:
            bad.append((key, np.float32(-1)))
            if kind.book == "dynamic" and kind.squares:
                bad.append((f"0/{kind.name}/codes", 3))  # a negative number of the book
        for name, value in bad:
            state = {k: v.copy() for k, v in good.items()}
            state[name].reshape(-1)[-1] = value
            with pytest.raises(
                ValueError, match=rf"^state: expected (finite|no negative) numbers in '0/{kind.name}"
            ):
                optimizer.load_state_dict(state)
            tried += 1
    assert tried >= 3
    assert any(kind.squares for kind in optimizer.state_books) == (cls not in (SGD, LARS, Lion))
    for key, a in optimizer.state_dict().items():
        np.testing.assert_array_equal(a, good[key])
    if not wide:  # a negative code in a block of zeros is no negative number: so bitsandbytes begins
        for kind in optimizer.state_books:
            good[f"0/{kind.name}/codes"][...], good[f"0/{kind.name}/scales"][...] = 0, 0
        optimizer.load_state_dict(good)
    optimizer.step(np.ones(600, np.float32))
    assert np.isfinite(p).all() and (p != before).any()


@pytest.mark.parametrize("cls", CLASSES)
def test_another_min_8bit_size_on_load(cls):
    """Codes are decoded and float32 is coded, each as a step would."""
    rng = np.random.default_rng(4)
    p = [
        rng.standard_normal((40, 30)).astype(np.float32),
        np.ones(700, np.float32),
        np.ones((0, 3), np.float32),
    ]
    grads = [rng.standard_normal(a.shape) for a in p]
    forms = {size: make(cls, [a.copy() for a in p], min_8bit_size=size) for size in (0, 1000, 5000)}
    for source in forms.values():
        source.step(grads)
    for source in forms.values():
        for other in forms:
            target = make(cls, [a.copy() for a in source.params], min_8bit_size=other)
            target.load_state_dict(source.state_dict())
            assert target.steps_done == 1
            for i, (mine, own) in enumerate(zip(target._states, source._states, strict=True)):
                assert mine.wide == (p[i].size < other)
                for k, book in enumerate(mine.books):
                    if mine.wide:
                        np.testing.assert_array_equal(mine.values[k], own.decoded_flat()[k])
                        continue
                    codes = own.values[k], None if own.wide else own.scales[k]
                    if own.wide:
                        codes = reference.quantize(own.values[k], book.values, 256)
                    np.testing.assert_array_equal(mine.values[k], codes[0])
                    np.testing.assert_array_equal(mine.scales[k], codes[1])
            target.step(grads)
            assert all((a != b).any() for a, b in zip(target.params[:2], source.params[:2], strict=True))


def test_files_and_what_is_none(tmp_path):
    p = np.ones(5000, np.float32)
    optimizer = Adam(p)
    optimizer.step(p.copy())
    memory = io.BytesIO()
    optimizer.save(memory)
    optimizer.save(tmp_path / "a.npz")
    with open(tmp_path / "b.npz", "wb") as file:
        optimizer.save(file)
    memory.seek(0)
    again = io.BytesIO((tmp_path / "b.npz").read_bytes())
    for source in (memory, tmp_path / "a.npz", str(tmp_path / "b.npz"), again):
        other = Adam(p.copy())
        other.load(source)
        for key, a in other.state_dict().items():
            np.testing.assert_array_equal(a, optimizer.state_dict()[key])
    for bad in (3, True, None, io.StringIO(), [], object()):
        with pytest.raises(TypeError, match=r"^path: expected a path or a binary file"):
            optimizer.save(bad)
        with pytest.raises(TypeError, match=r"^path: expected a path or a binary file"):
            optimizer.load(bad)


def change(key, value):
    def do(state):
        state[key] = value(state[key]) if callable(value) else value

    return do


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s.pop("0/m/codes"),
        lambda s: s.pop("steps_done"),
        change("optimizer", np.array("Lion")),
        change("format", np.array("something else")),
        change("format", np.arange(3)),
        change("blocksize", np.array(64)),
        change("tensors", np.array(1)),
        change("steps_done", np.array(-1)),
        change("steps_done", np.array(1.5)),
        change("steps_done", np.array(2**64 - 1, dtype=np.uint64)),
        change("steps_done", np.array(2**62 + 1)),
        change("0/m/codes", lambda a: a.astype(np.int8)),
        change("0/m/codes", lambda a: a[:-1]),
        change("0/v/scales", lambda a: -a),
        change("0/v/scales", lambda a: a * np.float32(np.nan)),
        change("1/m", lambda a: a.astype(np.float64)),
        change("1/v", lambda a: a - 1),
    ],
)
def test_damaged_state_changes_nothing(damage):
    p = [np.ones(5000, np.float32), np.ones(10, np.float32)]
    optimizer = Adam(p)
    optimizer.step([np.ones(5000), np.ones(10)])
    good = optimizer.state_dict()
    bad = {k: v.copy() for k, v in good.items()}
    damage(bad)
    with pytest.raises(ValueError, match=r"^state:"):
        optimizer.load_state_dict(bad)
    for key, a in optimizer.state_dict().items():
        np.testing.assert_array_equal(a, good[key])


def test_damaged_file(tmp_path):
    optimizer = Adam(np.ones(10, np.float32))
    path = tmp_path / "state.npz"
    optimizer.save(path)
    whole = path.read_bytes()
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, format=np.array([{}], dtype=object))
    for content in (
        b"",
        whole[: len(whole) // 2],
        b"x" * 100,
        pickled.read_bytes(),
        b"\x93NUMPY" + b"0" * 50,
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^(path|state):"):
            optimizer.load(path)
    np.save(tmp_path / "plain.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"^(path|state):"):
        optimizer.load(tmp_path / "plain.npy")
    with pytest.raises(FileNotFoundError):
        optimizer.load(tmp_path / "nothing.npz")


P = np.ones(10, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "argument"),
    [
        (lambda: Adam(np.ones(10)), TypeError, r"params\[0\]"),
        (lambda: Adam([P, [1.0]]), TypeError, r"params\[1\]"),
        (lambda: Adam([]), ValueError, "params"),
        (lambda: Adam(3), TypeError, "params"),
        (lambda: Adam([P, P[5:]]), ValueError, r"params\[1\]"),
        (lambda: Adam(np.broadcast_to(P, (2, 10))), ValueError, r"params\[0\]"),
        (lambda: Adam(P, lr=-1), ValueError, "lr"),
        (lambda: Adam(P, lr="1"), TypeError, "lr"),
        (lambda: Adam(P, lr=np.nan), ValueError, "lr"),
        (lambda: Adam(P, betas=(0.9, 1.0)), ValueError, "betas"),
        (lambda: Adam(P, betas=(0.9,)), ValueError, "betas"),
        (lambda: Adam(P, betas=0.9), TypeError, "betas"),
        (lambda: Adam(P, eps=-1e-8), ValueError, "eps"),
        (lambda: Adam(P, eps=0), ValueError, "eps"),
        (lambda: Adam(P, weight_decay=-1), ValueError, "weight_decay"),
        (lambda: Adam(P, blocksize=0), ValueError, "blocksize"),
        (lambda: Adam(P, min_8bit_size=-1), ValueError, "min_8bit_size"),
        (lambda: Adam(P, num_threads=0), ValueError, "num_threads"),
        (lambda: Adam(P, check_first=1), TypeError, "check_first"),
        (lambda: SGD(P, lr=0.1, momentum=1.0), ValueError, "momentum"),
        (lambda: RMSprop(P, alpha=2), ValueError, "alpha"),
        (lambda: AdEMAMix(P, alpha=-1), ValueError, "alpha"),
        (lambda: Adam(P).step([P, P]), ValueError, "grads"),
        (lambda: Adam(P).step([P[:5]]), ValueError, r"grads\[0\]"),
        (lambda: Adam(P).step([np.ones(10, int)]), TypeError, r"grads\[0\]"),
        (lambda: Adam(P).load_state_dict(3), TypeError, "state"),
    ],
)
def test_bad_arguments(call, error, argument):
    with pytest.raises(error, match=f"^{argument}:"):
        call()
