"""Signals by the real `kill`: handled during a block, restored after it."""

import os
import signal

import pytest

from pipeline.common import signals


def test_handlers_are_restored_after_the_block_and_after_an_error():
    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)
    arrived = []
    with pytest.raises(OSError), signals.handled(
        (signal.SIGUSR1, signal.SIGTERM), lambda number, _: arrived.append(number)
    ):  # fmt: skip
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        raise OSError
    assert arrived == [signal.SIGUSR1, signal.SIGTERM]
    assert (signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)) == before


def test_a_handler_that_was_replaced_for_good_is_kept():
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with signals.handled([signal.SIGUSR1], print):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_only_a_hangup_that_nohup_ignores_stays_ignored():
    arrived = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled(signals.STOP_SIGNALS, lambda number, _: arrived.append(number)):
            for number in signals.STOP_SIGNALS:
                os.kill(os.getpid(), number)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert arrived == [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_stop_request_is_a_flag_and_after_training_a_signal_is_ignored(number):
    before = {n: signal.getsignal(n) for n in signals.STOP_SIGNALS}
    try:
        with signals.stop_requests() as request:
            assert not request
            os.kill(os.getpid(), number)
            assert request and request.reason == number.name
        os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
