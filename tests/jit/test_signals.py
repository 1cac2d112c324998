"""Signals that come while something is compiled are handled afterwards, all of them."""

from __future__ import annotations

import signal
import threading

import pytest

from lowgemm.jit.signals import signals_wait

#: Two signals whose handlers every system lets a program set.
ONE, OTHER = signal.SIGINT, signal.SIGTERM


class Handlers:
    """Handlers for the two signals that note the call, and raise where they are told to."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.raises: dict[int, BaseException] = {}

    def __call__(self, number, frame):
        self.calls.append(number)
        assert frame is not None
        if number in self.raises:
            raise self.raises[number]


@pytest.fixture
def handlers():
    made = Handlers()
    before = {number: signal.signal(number, made) for number in (ONE, OTHER)}
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


def test_handlers_are_called_at_the_end_once(handlers):
    with signals_wait():
        for number in (OTHER, ONE, OTHER):
            signal.raise_signal(number)
        assert handlers.calls == []
    assert handlers.calls == [OTHER, ONE]
    assert signal.getsignal(ONE) is handlers and signal.getsignal(OTHER) is handlers
    signal.raise_signal(ONE)
    assert handlers.calls == [OTHER, ONE, ONE]


def test_all_handlers_are_called_even_if_one_raises(handlers):
    handlers.raises = {OTHER: TimeoutError(), ONE: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt) as raised, signals_wait():
        signal.raise_signal(OTHER)
        signal.raise_signal(ONE)
        raise ValueError("what the block itself raised")
    assert handlers.calls == [OTHER, ONE]
    first = raised.value.__context__
    assert type(first) is TimeoutError and type(first.__context__) is ValueError


def test_a_block_inside_of_another_waits_for_the_outer_end(handlers):
    with signals_wait():
        with signals_wait():
            signal.raise_signal(ONE)
        assert handlers.calls == []
    assert handlers.calls == [ONE]


def test_a_handler_set_inside_the_block_stays(handlers):
    mine = Handlers()
    with signals_wait():
        signal.signal(ONE, mine)
        signal.raise_signal(ONE)
        assert mine.calls == [ONE]
    assert signal.getsignal(ONE) is mine and handlers.calls == []


def test_a_handler_that_raises_while_handlers_are_put_back_leaves_none_behind(handlers, monkeypatch):
    """A signal comes when the first handler is back: the other is put back by the next block at the
    latest.
    """
    handlers.raises = {ONE: KeyboardInterrupt(), OTHER: KeyboardInterrupt()}
    real, after = signal.signal, []

    def put(number, handler):
        result = real(number, handler)
        if handler is handlers and not after:
            after.append(number)
            signal.raise_signal(number)
        return result

    monkeypatch.setattr(signal, "signal", put)
    with pytest.raises(KeyboardInterrupt), signals_wait():
        pass
    monkeypatch.undo()
    assert len(after) == 1
    (left,) = {ONE, OTHER} - set(after)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(left)
    assert handlers.calls == [*after, left]
    with signals_wait():
        pass
    assert signal.getsignal(ONE) is handlers and signal.getsignal(OTHER) is handlers


def test_what_has_no_handler_in_python_is_left_alone(handlers):
    signal.signal(ONE, signal.SIG_IGN)
    signal.signal(OTHER, signal.SIG_DFL)
    with signals_wait():
        assert signal.getsignal(ONE) is signal.SIG_IGN and signal.getsignal(OTHER) is signal.SIG_DFL


def test_another_thread_changes_nothing(handlers):
    seen = []

    def look():
        with signals_wait():
            seen.append(signal.getsignal(ONE))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [handlers]
