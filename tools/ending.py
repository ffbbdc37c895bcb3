"""How a program of ours is ended from outside, so that nothing that it began goes on without it."""

import ctypes
import os
import signal
from types import FrameType

_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_as_by_ctrl_c(*numbers: signal.Signals) -> None:
    """From now on each of them (all three, if none is named) raises KeyboardInterrupt in the main thread.

    SIGHUP (a dropped session) stays ignored where it is, under nohup. SIGINT is not: a shell ignores it for what it starts with &.
    """
    for number in numbers or _ALL:
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        elif number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupted)


def end_with_parent(number: signal.Signals) -> None:
    """In a new child (`preexec_fn`): it gets that signal when the thread that started it ends, also by SIGKILL (Linux)."""
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
    if os.getppid() == 1:
        os._exit(1)


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Told twice (of a dropped session by the kernel and the shell), it must not cut short what the first one began."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
