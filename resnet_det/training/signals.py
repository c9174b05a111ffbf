"""Signals that stop a run, which then saves a checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) instead of ending the process.

    Yields a list to which each signal appends its number. The third SIGINT ends the process at once
    (not the second, because torchrun forwards a terminal's Ctrl-C a second time).
    """
    received: list[int] = []

    def receive(number, _):
        received.append(int(number))
        if received.count(signal.SIGINT) > 2:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received  # Python delivers signals only to the main thread
        return
    previous = {
        number: signal.signal(number, receive)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_code(received: Sequence[int]) -> int:
    """Exit code of a process that stops because of :func:`stop_signals`.

    Args:
        received: signals of this process; empty if only another process received one.
    """
    return 128 + (received[0] if received else signal.SIGTERM)
