"""What a program's /healthz must do to be restarted: only what hangs, or says that it is not well."""

import http.client
import socket
import struct
import threading
from collections.abc import Callable

import pytest
from superlance import httpok

from tools.alive import Alive


def hangs(client: socket.socket) -> None:
    client.settimeout(5)
    while client.recv(4096):
        pass


def resets(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def ends(client: socket.socket) -> None:
    client.recv(4096)


def asked(server: Callable[[socket.socket], None] | None) -> str:
    """What httpok says of a server that does so with the connection; None: nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if server is None:
            listener.close()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                if server:
                    server(client)

        thread = threading.Thread(target=serve) if server else None
        if thread:
            thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=0.2)
        try:
            connection.request("GET", "/healthz")
            connection.getresponse()
            raise AssertionError("no such server answers")
        except (OSError, http.client.HTTPException) as error:
            return f"error contacting http://127.0.0.1:{port}/healthz:\n\n {error}"
        finally:
            connection.close()
            if thread:
                thread.join()


@pytest.mark.parametrize(("server", "restarted"), [(None, False), (ends, False), (resets, False), (hangs, True)])
def test_only_a_program_that_hangs_is_restarted(
    server: Callable[[socket.socket], None] | None, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(httpok.HTTPOk, "act", lambda self, subject, message: done.append(message))
    Alive.act(object.__new__(Alive), "", asked(server))
    assert bool(done) is restarted


def test_a_program_that_says_it_is_not_well_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(httpok.HTTPOk, "act", lambda self, subject, message: done.append(message))
    Alive.act(object.__new__(Alive), "", "status contacting http://127.0.0.1:1/healthz: 500 Internal Server Error")
    assert done
