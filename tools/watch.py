"""watch.py PID: wait until process PID has ended, then end the supervisor that started this one; without that, end too.

So a stack of a test or of the demo never outlives them, not even when they are killed.
"""

import contextlib
import os
import select
import signal
import sys


def main(owner: int) -> None:
    supervisor = os.pidfd_open(os.getppid())
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(owner), supervisor], [], [])
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(supervisor, signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]))
