"""alive.py: httpok (superlance) under supervisor; restarts a program whose /healthz gives no answer in time.

One difference: a refused connection is a program that is just starting, or one that supervisor starts anyway. httpok 2.0 would
restart it again and again: its own retry never runs, since its connection loses the error's number.
"""

import errno
import http.client
import os
import sys
import xmlrpc.client

from superlance import httpok


class Alive(httpok.HTTPOk):  # type: ignore[misc]  # superlance is untyped
    connclass = http.client.HTTPConnection

    def act(self, subject: str, message: str) -> None:
        if os.strerror(errno.ECONNREFUSED) not in message:
            super().act(subject, message)


if __name__ == "__main__":
    httpok.HTTPOk = Alive
    try:
        httpok.main()
    except (OSError, xmlrpc.client.Error):  # the supervisor does not answer: it is ending, and we with it
        sys.exit(1)
