"""Ctrl-C and SIGTERM while a model is trained."""

from __future__ import annotations

import os
import signal

import pytest

from twofold.train.loop import interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_held_back_once_and_handlers_are_restored(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with interruption() as asked_to_stop:
        assert not asked_to_stop()
        os.kill(os.getpid(), number)
        assert asked_to_stop()
        assert {each: signal.getsignal(each) for each in before} == before  # a second one acts as usual
    assert {each: signal.getsignal(each) for each in before} == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption() as asked_to_stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not asked_to_stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)
