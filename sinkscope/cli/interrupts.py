"""Ctrl-C and SIGTERM: each ends the command, wherever in it they arrive."""

import _thread
import signal
import sys
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_TO_LEAVE = 0.01


class Interrupts:
    """Raises KeyboardInterrupt when a signal asks the command to end.

    Python drops an exception that is raised in a finalizer or in the callback of a weak reference, and the command
    would go on. Such a signal is sent again a moment later.

    Attributes
    ----------
    number : Signals or None
        The signal that has come; None before.
    """

    def __init__(self) -> None:
        self.number: signal.Signals | None = None

    def install(self) -> None:
        """Listen to the signals from now on; ctrl-C stays ignored where the caller's shell has it ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._raise)
        sys.unraisablehook = self._dropped

    def ignore(self) -> None:
        """Hear no more signals: nothing is left to be stopped, and Python would tell of one by a traceback."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.number = signal.Signals(number)
        raise KeyboardInterrupt

    def _dropped(self, unraisable: Any) -> None:
        if self.number is None:
            sys.__unraisablehook__(unraisable)
        elif issubclass(unraisable.exc_type, KeyboardInterrupt):
            # By a bare thread: those of `threading` take locks, which the code that was interrupted may hold.
            _thread.start_new_thread(_send_again, (self.number,))
        # What else fails in finalizers after an interrupt is a consequence of it, such as files that cannot be closed.


def _send_again(number: signal.Signals) -> None:
    time.sleep(SECONDS_TO_LEAVE)
    _thread.interrupt_main(number)
