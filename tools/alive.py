"""alive.py: httpok (superlance) under supervisor; restarts a program whose /healthz gives no answer in time.

One difference: a connection that is refused or breaks is a program that is just starting, or has just ended and is started by
supervisor anyway. httpok 2.0 would restart the new one again.
"""

import http.client
import sys
import xmlrpc.client

from superlance import httpok


class Alive(httpok.HTTPOk):  # type: ignore[misc]  # superlance is untyped
    connclass = http.client.HTTPConnection

    def act(self, subject: str, message: str) -> None:
        if not message.startswith("error contacting") or "timed out" in message:
            super().act(subject, message)


if __name__ == "__main__":
    httpok.HTTPOk = Alive
    try:
        httpok.main()
    except (OSError, xmlrpc.client.Error):  # the supervisor does not answer: it is ending, and we with it
        sys.exit(1)
