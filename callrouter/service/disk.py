"""The state directory's disk: told early, and a reserve that keeps the journal going when it is full.

A file of 64 MB is kept aside. When less than that is left, it is given back, so that the journal can still record some
100,000 calls while people make room; once there is room, it is made anew. A disk that takes no data, or does not answer, is
told within 3 s.
"""

import asyncio
import os
import shutil
import time
from pathlib import Path

import structlog

from callrouter.health import Component, Health

log = structlog.get_logger(__name__)

RESERVE = 64 << 20
LOW = 512 << 20
_LOOK_S = 1.0
_SILENT_S = 2.5  # since the end of the last look: told as not well


class Disk:
    def __init__(self, state: Path) -> None:
        self._state, self._reserve = state, state / "journal.reserve"
        self._looked = time.monotonic()
        self._health = Health()

    def status(self) -> Component:
        if (silent_s := time.monotonic() - self._looked) > _SILENT_S:
            self._health.set(False, f"{self._state}: the disk has not answered for {silent_s:.0f} s")
        return self._health.status()

    async def run(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.look)  # a stalled disk must not stop the event loop
            except OSError as error:
                self._health.set(False, f"{self._state}: {error.strerror}")
            self._looked = time.monotonic()
            await asyncio.sleep(_LOOK_S)

    def look(self) -> None:
        """One round. Raises OSError."""
        free = shutil.disk_usage(self._state).free
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
