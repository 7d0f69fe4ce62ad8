"""Signals that ask a run to stop at its next step boundary."""

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """Receiver of signals in this process.

    Attributes:
        received: name of the last signal; None: none came.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    @contextlib.contextmanager
    def catch(self) -> Iterator[None]:
        """Record signals instead of obeying them; a second Ctrl-C ends the process."""

        def record(number: int, frame: object) -> None:
            self.received = signal.Signals(number).name
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {number: signal.signal(number, record) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
