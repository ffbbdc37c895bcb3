"""supervisord that hears at once when a program ends, and then looks five times a second for a while; else once, as it always does.

It looks twice before it starts a program again, once a second: a console that was killed was away for 3 s, two of them for nothing.
"""

import os
import signal
import time

from supervisor import supervisord
from supervisor.options import ServerOptions

_LOOK_S, _PROMPT_S = 0.2, 3.0


class Prompt(ServerOptions):  # type: ignore[misc]  # supervisor is untyped
    def __init__(self) -> None:
        super().__init__()
        self._poll, self.poller.poll = self.poller.poll, self._wait
        self._heard: int | None = None
        self._prompt_until = 0.0

    def setsignals(self) -> None:
        super().setsignals()
        self._heard, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # here: at a reload all that was open before is closed
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)  # a child's end is a signal

    def _wait(self, timeout: float) -> tuple[list[int], list[int]]:
        if self._heard is not None:
            self.poller.register_readable(self._heard)
        readable, writable = self._poll(min(timeout, _LOOK_S) if time.monotonic() < self._prompt_until else timeout)
        if self._heard is not None and self._heard in readable:
            os.read(self._heard, 4096)
            self._prompt_until = time.monotonic() + _PROMPT_S
        return [fd for fd in readable if fd != self._heard], writable


if __name__ == "__main__":
    supervisord.ServerOptions = Prompt
    supervisord.main()
