"""Port offsets for stacks of tests, so that several test runs on one machine do not meet."""

import fcntl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Eight places whose ports and audio ranges (4,000 ports) do not overlap each other, `make up` or SIPp's own audio.
_OFFSETS = tuple(4500 * n for n in range(1, 9))


@contextmanager
def leased_offset(seconds: float = 600.0) -> Iterator[int]:
    """An offset that is nobody else's until the end; the lease ends with the process, however that ends."""
    directory = Path(tempfile.gettempdir()) / "callrouter-test-offsets"
    directory.mkdir(exist_ok=True)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for offset in _OFFSETS:
            with (directory / str(offset)).open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield offset
                return
        time.sleep(0.2)
    raise RuntimeError(f"all places for test stacks are taken for {seconds:.0f} s: {directory}")
