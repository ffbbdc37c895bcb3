"""supervisord that looks five times a second whether a program has ended, instead of once.

It looks twice before it starts one again, so a console that was killed was away for 3 s, two of them for nothing.
"""

from supervisor import supervisord
from supervisor.options import ServerOptions

_LOOK_S = 0.2


class Prompt(ServerOptions):  # type: ignore[misc]  # supervisor is untyped
    def __init__(self) -> None:
        super().__init__()
        poll = self.poller.poll
        self.poller.poll = lambda timeout: poll(min(timeout, _LOOK_S))


if __name__ == "__main__":
    supervisord.ServerOptions = Prompt
    supervisord.main()
