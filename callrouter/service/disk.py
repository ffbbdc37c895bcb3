"""The state directory's disk: told early; recording stops before the journal does, which has a reserve for when it is full.

With less than 256 MB free new calls are not recorded, until 512 MB are free again. A file of 64 MB is kept aside. When less than
that is left, it is given back, so that the journal can still record some 100,000 calls while people make room; once there is room,
it is made anew. A disk that takes no data, or does not answer, is told within 3 s.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from callrouter.health import Component, Health

log = structlog.get_logger(__name__)

RESERVE = 64 << 20
LOW = 512 << 20
SPARE = 256 << 20  # the recordings that are being made may still grow, by 4.8 MB a second with 300 calls
_LOOK_S, _ANSWER_S = 1.0, 1.5  # longer without an answer: told as not well


class Disk:
    """`record` tells Asterisk whether to record the calls that come from now on, and returns whether it was there to be told."""

    def __init__(self, state: Path, record: Callable[[bool], bool]) -> None:
        self._state, self._reserve = state, state / "journal.reserve"
        self._record, self._recording = record, True
        self._told: bool | None = None  # as Asterisk knows it; at first, what the last daemon told it is not known
        self._asked: float | None = None  # time.monotonic() at the beginning of a look that is not over yet
        self._health = Health()

    def status(self) -> Component:
        if self._asked is not None and (silent_s := time.monotonic() - self._asked) > _ANSWER_S:
            self._health.set(False, f"{self._state}: the disk has not answered for {silent_s:.0f} s")
        return self._health.status()

    async def run(self) -> None:
        while True:
            self._asked = time.monotonic()
            try:
                await asyncio.to_thread(self.look)  # a stalled disk must not stop the event loop
            except OSError as error:
                self._health.set(False, f"{self._state}: {error.strerror}")
            self._asked = None
            if not (self._recording and self._told):  # again and again while it is off: an Asterisk that starts anew records
                await asyncio.to_thread(self._tell)
            await asyncio.sleep(_LOOK_S)

    def _tell(self) -> None:
        recording = self._recording
        if not self._record(recording):
            return
        if not recording and self._told is not False:
            log.error("disk nearly full: new calls are not recorded; make room")
        self._told = recording

    def look(self) -> None:
        """One round. Raises OSError."""
        free = shutil.disk_usage(self._state).free
        self._recording = free >= (SPARE if self._recording else LOW)
        if free < RESERVE and self._reserve.exists():
            log.error("disk full: the journal's reserve is given back; make room", free_mb=free >> 20)
            self._reserve.unlink()
        elif free > LOW + RESERVE and not self._reserve.exists():
            self._make_reserve()
        if free < LOW:
            self._health.set(False, f"{free >> 20} MB free: make room")
            return
        try_write(self._state, sync=True)
        self._health.set(True, f"{free >> 20} MB free")

    def _make_reserve(self) -> None:
        try:
            with self._reserve.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE)
        except OSError:  # half of it would count as made; the next round tries again
            self._reserve.unlink(missing_ok=True)


def try_write(directory: Path, *, sync: bool = False) -> None:
    """Does its disk take data; with `sync`, also to the disk itself? Raises OSError. May wait as long as the disk lets it."""
    path = directory / ".writable"
    with path.open("wb") as file:
        file.write(os.urandom(8192))
        if sync:
            file.flush()
            os.fsync(file.fileno())
    path.unlink()
