"""Port offsets for stacks of tests, so that several test runs on one machine do not meet."""

import fcntl
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Places whose ports do not meet each other's (lab.py gives each 1,200 ports for audio), nor those that Linux gives to sockets
# without a port of their own (32768 and above): phones have such.
_OFFSETS = tuple(2200 * n for n in range(1, 10))
AUDIO_PORTS = 1200
# Above the last place nobody's ports follow: a stack there may use so many for audio.
WIDE_AUDIO_PORTS = 2600


def _nobody_there(offset: int) -> bool:
    """A stack whose owner was killed ends some seconds after the lease."""
    for base, kind in (
        (5060, socket.SOCK_DGRAM),
        (9060, socket.SOCK_DGRAM),
        (8112, socket.SOCK_STREAM),
        (8113, socket.SOCK_STREAM),
    ):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", base + offset))
            except OSError:
                return False
    return True


@contextmanager
def leased_offset(seconds: float = 600.0, *, wide: bool = False) -> Iterator[int]:
    """An offset that is nobody else's until the end; the lease ends with the process, however that ends.

    `wide`: that of the place with room for `WIDE_AUDIO_PORTS`.
    """
    directory = Path(tempfile.gettempdir()) / "callrouter-test-offsets"
    directory.mkdir(exist_ok=True)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for offset in _OFFSETS[-1:] if wide else _OFFSETS:
            with (directory / str(offset)).open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if not _nobody_there(offset):
                    continue
                yield offset
                return
        time.sleep(0.2)
    raise RuntimeError(f"all places for test stacks are taken for {seconds:.0f} s: {directory}")
