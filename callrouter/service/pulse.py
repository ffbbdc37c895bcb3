"""The event loop's own pulse: how late it runs, told to /readyz, the metrics and, in production, systemd's watchdog.

A loop that is blocked, or a stopped process, beats no more: its supervisor (systemd: WatchdogSec; `make up`: httpok, which asks
/healthz) restarts it. Source: sd_notify(3).
"""

import asyncio
import contextlib
import os
import socket
import time
from collections import deque

from prometheus_client import CollectorRegistry, Gauge, Histogram

from callrouter.health import Component, Health

BEAT_S = 0.2
LATE_S = 0.5  # told as not well
_TOLD_S = 2.0  # the worst of so long a time is shown
_NOTIFY_S = 1.0


class Pulse:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._health = Health()
        self._late: deque[tuple[float, float]] = deque()  # (when, seconds late)
        self._histogram = Histogram(
            "callrouter_loop_late_seconds",
            "How late the event loop ran what was due, five times a second.",
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
            registry=registry,
        )
        worst = Gauge("callrouter_loop_late_worst_seconds", f"The worst of the last {_TOLD_S:.0f} s.", registry=registry)
        worst.set_function(self.worst_s)

    def status(self) -> Component:
        worst = self.worst_s()
        self._health.set(worst < LATE_S, f"event loop ran {worst * 1000:.0f} ms late" if worst >= LATE_S else "in time")
        return self._health.status()

    def worst_s(self) -> float:
        now = time.monotonic()
        while self._late and now - self._late[0][0] > _TOLD_S:
            self._late.popleft()
        return max((late for _, late in self._late), default=0.0)

    async def run(self) -> None:
        notify("READY=1")
        told = 0.0
        while True:
            due = time.monotonic() + BEAT_S
            await asyncio.sleep(BEAT_S)
            now = time.monotonic()
            late = max(0.0, now - due)  # uvloop's timers may be early, by less than 1 ms
            self._late.append((now, late))
            self.worst_s()
            self._histogram.observe(late)
            if now - told >= _NOTIFY_S:
                told = now
                notify("WATCHDOG=1")


def notify(state: str) -> None:
    """Tell systemd, when it started this process and wants to know."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        to.setblocking(False)
        with contextlib.suppress(OSError):  # nobody listens, or is behind: systemd's limit decides
            to.sendto(state.encode(), f"\0{address[1:]}" if address[0] == "@" else address)
