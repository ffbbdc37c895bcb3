"""What the tests of several directories share."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(condition: Callable[[], T | None], what: str, seconds: float = 10.0) -> T:
    """The condition's value as soon as it is true; fails with `what` when it does not become so."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        await asyncio.sleep(0.02)


async def until_found(condition: Callable[[], Awaitable[T | None]], what: str, seconds: float = 10.0) -> T:
    """The same for a condition that must be awaited, such as a question to a database."""
    deadline = time.monotonic() + seconds
    while True:
        if value := await condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        await asyncio.sleep(0.02)


def hears_sighup() -> None:
    """`preexec_fn` of a process that SIGHUP is to end, also where the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
