"""The parts of a program that run side by side: one that fails is told and begins again, and takes none of the others with it.

The daemon's own end costs those in the menu their menu; a report at night must not cause it.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from callrouter.health import Component, Health

log = structlog.get_logger(__name__)

_AGAIN_S = 1.0
_TOLD_S = 60.0


class Part(Protocol):
    async def run(self) -> None:
        """Until cancelled; may be run again after it failed."""


class Parts:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last, self._failed_at = "", -math.inf
        self._health = Health()

    async def keep(self, part: Part) -> None:
        """Run it until cancelled, whatever it does."""
        name = type(part).__name__
        while True:
            try:
                await part.run()
            except Exception as error:
                self._last, self._failed_at = (
                    f"{name.lower()} failed and began again: {type(error).__name__} (see the log)",
                    self._clock(),
                )
                log.exception("part failed; it begins again, the others go on", part=name)
            await asyncio.sleep(_AGAIN_S)

    def status(self) -> Component:
        """Not well for a minute after a failure, so that somebody looks."""
        failed = self._clock() - self._failed_at < _TOLD_S
        self._health.set(not failed, self._last if failed else "all parts run")
        return self._health.status()
