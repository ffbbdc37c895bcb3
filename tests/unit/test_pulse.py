"""The event loop's pulse: a blocked loop is told, and forgotten; systemd hears of a living one."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from callrouter.service.pulse import LATE_S, Pulse
from tests.support import until


@asynccontextmanager
async def beating(registry: CollectorRegistry) -> AsyncIterator[Pulse]:
    pulse = Pulse(registry)
    task = asyncio.create_task(pulse.run())
    try:
        yield pulse
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_blocked_loop_is_told_and_then_forgotten() -> None:
    registry = CollectorRegistry()
    async with beating(registry) as pulse:
        beats = "callrouter_loop_late_seconds_count"
        await until(lambda: registry.get_sample_value(beats), "it beats")
        await until(lambda: pulse.status().ok, "in time")
        time.sleep(LATE_S + 0.2)  # noqa: ASYNC251  the fault itself
        await until(lambda: not pulse.status().ok, "the blocked loop is told", 1)
        assert registry.get_sample_value("callrouter_loop_late_worst_seconds") >= LATE_S  # type: ignore[operator]
        assert registry.get_sample_value("callrouter_loop_late_seconds_bucket", {"le": "0.5"}) < registry.get_sample_value(beats)  # type: ignore[operator]
        await until(lambda: pulse.status().ok, "a loop that runs again is well", 3)


async def test_systemd_hears_that_it_is_ready_and_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (str(tmp_path / "notify"), f"\0callrouter-{tmp_path.name}-{time.monotonic_ns()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(address)
            systemd.settimeout(5)
            monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
            async with beating(CollectorRegistry()):
                heard = [await asyncio.to_thread(systemd.recv, 100) for _ in range(3)]
            assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]


async def test_without_systemd_or_with_a_deaf_one_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", str(tmp_path / "nobody")):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        registry = CollectorRegistry()
        async with beating(registry):
            await until(lambda: registry.get_sample_value("callrouter_loop_late_seconds_count"), "it beats")  # noqa: B023
